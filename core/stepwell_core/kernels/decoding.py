"""How an element of a payload becomes a number of the parameter's dtype.

The half-width formats come as their bits in uint16, since Numba has neither dtype on the CPU.
"""

from __future__ import annotations

import numpy as np

from stepwell_core.kernels.compiler import Kernel, inline


def decode_float(x, like):  # type: ignore[no-untyped-def]
    """Return float32 or float64 `x` in the dtype of `like`."""
    return type(like)(x)


def decode_float16(x, like):  # type: ignore[no-untyped-def]
    """Return the float16 with the bits `x` in the dtype of `like`; exact."""
    # Numba widens the result of <<, hence the outer casts.
    bits = np.uint32((x & np.uint32(0x7FFF)) << np.uint32(13))
    sign = np.uint32((x & np.uint32(0x8000)) << np.uint32(16))
    # Shifted into float32's fields the exponent is 112 too small; the product is exact,
    # subnormals included.
    magnitude = np.float32(bits.view(np.float32) * np.float32(2.0**112)).view(np.uint32)
    is_finite = bits < np.uint32(0x0F800000)
    chosen = magnitude if is_finite else np.uint32(bits | np.uint32(0x7F800000))
    return type(like)(np.uint32(chosen | sign).view(np.float32))


def decode_bfloat16(x, like):  # type: ignore[no-untyped-def]
    """Return the bfloat16 with the bits `x` in the dtype of `like`; exact."""
    return type(like)(np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32))


DECODE: dict[str, Kernel] = {
    "float16": decode_float16,
    "bfloat16": decode_bfloat16,
    "float32": decode_float,
    "float64": decode_float,
}
"""By the name of the format, as in `Stages.payload`."""

inline(*DECODE.values())
