"""Where the arenas of a payload lie in one buffer: in staging, or in memory that is shared.

On the wire arenas follow each other without a gap. In a buffer each begins at a multiple of 64
bytes: a line of the cache, and the widest vector register.
"""

from __future__ import annotations

import numpy as np

from stepwell_core.layout import Arenas, Array, Layout, payload_dtype

ALIGNMENT = 64


def extent(layout: Layout, dtype: str = "native") -> int:
    """Return how many bytes of a buffer a payload takes; at least 1, since no region is empty.

    Args:
        layout: What the payload holds.
        dtype: One of `layout.PAYLOAD_DTYPES`.
    """
    return max(1, sum(map(_aligned, _sizes(layout, dtype).values())))


def place(layout: Layout, buffer: memoryview | Array, dtype: str = "native") -> Arenas:
    """Return the arenas of a payload as views into a buffer.

    Args:
        layout: What the payload holds.
        buffer: Bytes, `extent` at least; the arenas are writable if it is, and keep it alive.
        dtype: One of `layout.PAYLOAD_DTYPES`.
    """
    arenas: Arenas = {}
    start = 0
    for arena_dtype, nbytes in _sizes(layout, dtype).items():
        count = layout.sizes[arena_dtype]
        element = payload_dtype(dtype, arena_dtype)
        arenas[arena_dtype] = np.frombuffer(buffer, element, count, start)
        start += _aligned(nbytes)
    return arenas


def _sizes(layout: Layout, dtype: str) -> dict[str, int]:
    return {
        arena_dtype: count * payload_dtype(dtype, arena_dtype).itemsize
        for arena_dtype, count in layout.sizes.items()
    }


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
