"""A gradient as it travels, before anything is done to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from stepwell_core import kernels
from stepwell_core.layout import Arenas, Array, Layout, Segment, byte_views

_INFINITY: dict[str, np.signedinteger[Any]] = {
    "float16": np.int16(0x7C00),
    "bfloat16": np.int16(0x7F80),
    "float32": np.int32(0x7F800000),
    "float64": np.int64(0x7FF0000000000000),
}
DELTA_SCALE = -1.0
"""The loss scale of a delta: divided by it, which is exact, `w_local - w_pulled` is a gradient."""

_ROUNDS_TO_INFINITY: np.signedinteger[Any] = np.int64(0x47EFFFFFF0000000)
"""The bits of the smallest float64 that is infinite as float32: half a unit above the largest."""


@dataclass(frozen=True)
class Gradient:
    """A gradient as it travels.

    Attributes:
        layout: The tensors it has: the model's layout or a selection of it.
        arenas: The elements, in `layout`'s order; read, never written.
        dtype: What they are, one of `PAYLOAD_DTYPES`.
        loss_scale: What they have still to be divided by, if anything: `DELTA_SCALE` for a delta.
    """

    layout: Layout
    arenas: Arenas
    dtype: str = "native"
    loss_scale: float | None = None

    def bits(self, arena_dtype: str) -> tuple[Array, str]:
        """Return one arena as the kernels take it, and the name of its elements' format."""
        array = self.arenas[arena_dtype]
        payload = arena_dtype if self.dtype == "native" else self.dtype
        return (array.view(np.uint16) if array.itemsize == 2 else array), payload

    def values(self, segment: Segment) -> Array:
        """Return one tensor's elements as numbers, flat; of state, which is taken as it is."""
        array = self.arenas[segment.tensor.dtype][segment.start : segment.stop]
        if self.dtype == "bfloat16":
            return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return array

    def fingerprint(self) -> str:
        """Return the xxh3_64 of the payload's bytes, in hexadecimal.

        O(bytes); without the GIL, so another thread may work it out beside the step. The same
        however the bytes came, another for other bytes; no protection from somebody who looks for
        two payloads that have the same.
        """
        fingerprint = xxhash.xxh3_64()
        for view in byte_views(self.arenas):
            fingerprint.update(view)
        return fingerprint.hexdigest()

    def first_nonfinite(self) -> str | None:
        """Return the name of the first tensor that is not finite; see `is_finite`."""
        for name, segment in self.layout.segments.items():
            dtype = segment.tensor.dtype
            part = {dtype: self.arenas[dtype][segment.start : segment.stop]}
            if not Gradient(self.layout.select([name]), part, self.dtype).is_finite():
                return name
        return None

    def is_finite(self) -> bool:
        """Return whether no element is NaN or infinite in its parameter's dtype.

        O(elements); reads each once. The loss scale is left out of account, as in Keras.
        """
        is_below = kernels.finite_kernel()
        for arena_dtype in self.layout.sizes:
            array, payload = self.bits(arena_dtype)
            limit = _INFINITY[payload]
            if (payload, arena_dtype) == ("float64", "float32"):
                limit = _ROUNDS_TO_INFINITY
            magnitude = np.iinfo(limit.dtype).max
            if not is_below(array.view(limit.dtype), limit.dtype.type(magnitude), limit):
                return False
        return True
