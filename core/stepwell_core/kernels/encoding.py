"""How a parameter becomes an element of a half-width payload; the mirror of `decoding.py`.

Rounded to nearest, ties to even; too large becomes infinite; NaN becomes the quiet NaN of its sign.
Equal to NumPy's `astype(float16)` and to ml_dtypes' `astype(bfloat16)` for all but the payloads of
NaN. As in ml_dtypes a float64 becomes a bfloat16 by way of float32, so it is rounded twice; it
becomes a float16 at once.

All cases of an element are computed and one is chosen, without a branch, so that the loops are
vectorized. Numba widens what it adds and shifts, hence the casts.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from stepwell_core.kernels.compiler import Kernel, compile_kernel, inline


def encode_float16(x):  # type: ignore[no-untyped-def]
    """Return the bits of float32 `x` as a float16."""
    bits = np.float32(x).view(np.uint32)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    # Below 2**-14 the float16 has units of 2**-24. Those of float32 are as large from 0.5 on, so
    # adding that rounds.
    shifted = np.float32(magnitude.view(np.float32) + np.float32(0.5)).view(np.uint32)
    small = np.uint32(shifted - np.uint32(0x3F000000))
    is_odd = np.uint32((magnitude >> np.uint32(13)) & np.uint32(1))
    # The exponent is 112 less; a carry out of the fraction goes where it belongs, up to infinity.
    rounded = np.uint32(np.uint32(magnitude - np.uint32(112 << 23)) + np.uint32(0xFFF) + is_odd)
    usual = np.uint32(rounded >> np.uint32(13))
    chosen = small if magnitude < np.uint32(113 << 23) else usual
    chosen = np.uint32(0x7C00) if magnitude >= np.uint32(143 << 23) else chosen
    chosen = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else chosen
    return np.uint16(sign | chosen)


def encode_double_float16(x):  # type: ignore[no-untyped-def]
    """Return the bits of float64 `x` as a float16, rounded once; the same with longer fields."""
    bits = np.float64(x).view(np.uint64)
    sign = np.uint64((bits >> np.uint64(48)) & np.uint64(0x8000))
    magnitude = np.uint64(bits & np.uint64(0x7FFFFFFFFFFFFFFF))
    # The units of float64 are 2**-24 from 2**28 on.
    shifted = np.float64(magnitude.view(np.float64) + np.float64(2.0**28)).view(np.uint64)
    small = np.uint64(shifted - np.uint64(0x41B0000000000000))
    is_odd = np.uint64((magnitude >> np.uint64(42)) & np.uint64(1))
    offset = np.uint64(magnitude - np.uint64(1008 << 52))
    rounded = np.uint64(offset + np.uint64(0x1FFFFFFFFFF) + is_odd)
    usual = np.uint64(rounded >> np.uint64(42))
    chosen = small if magnitude < np.uint64(1009 << 52) else usual
    chosen = np.uint64(0x7C00) if magnitude >= np.uint64(1039 << 52) else chosen
    chosen = np.uint64(0x7E00) if magnitude > np.uint64(0x7FF0000000000000) else chosen
    return np.uint16(sign | chosen)


def encode_bfloat16(x):  # type: ignore[no-untyped-def]
    """Return the bits of `x`, made a float32, as a bfloat16: its upper half, rounded."""
    bits = np.float32(x).view(np.uint32)
    is_odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + is_odd) >> np.uint32(16))
    quiet = np.uint32(((bits >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x7FC0))
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(quiet if is_nan else rounded)


ENCODE: dict[tuple[str, str], Kernel] = {
    ("float16", "float32"): encode_float16,
    ("float16", "float64"): encode_double_float16,
    ("bfloat16", "float32"): encode_bfloat16,
    ("bfloat16", "float64"): encode_bfloat16,
}
"""By the name of the format and the dtype of the parameter."""

inline(encode_float16, encode_double_float16, encode_bfloat16)


@lru_cache(maxsize=8)
def encode_kernel(payload: str, dtype: str, *, compiled: bool = True) -> Kernel:
    """Return `kernel(w, out, runs)`: write parameters as half-width elements.

    `w` is indexed by `runs[:, 0]` to `runs[:, 1]`, `out`, of uint16, from `runs[:, 2]` on.

    Args:
        payload: "float16" or "bfloat16".
        dtype: Of the parameters, "float32" or "float64".
        compiled: False gives the same loop as plain Python, for tests.
    """
    encode = ENCODE[payload, dtype]

    def block(w, out):  # type: ignore[no-untyped-def]
        for i in range(w.size):
            out[i] = encode(w[i])

    def kernel(w, out, runs):  # type: ignore[no-untyped-def]
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            block(w[start:stop], out[first : first + stop - start])

    key = ("encode", payload, dtype)
    return compile_kernel(kernel, block, key=key) if compiled else kernel
