"""Copies large arenas beside the event loop, on two threads.

One thread copies memory with small pages at two thirds of the rate that the machine has.
"""

from __future__ import annotations

import asyncio

import numpy as np
from stepwell_core.layout import Arenas

LEAST_BYTES = 1 << 18
"""Less is copied at once: another thread takes longer to begin."""


async def copy_arenas(source: Arenas, target: Arenas) -> None:
    """Copy all elements; nothing is written any more when it has returned or was cancelled.

    Args:
        source: Only read.
        target: Of the same dtypes and sizes.
    """
    if sum(array.nbytes for array in source.values()) < LEAST_BYTES:
        for dtype, array in source.items():
            np.copyto(target[dtype], array)
        return
    copying = asyncio.gather(
        asyncio.to_thread(_copy_half, source, target, 0),
        asyncio.to_thread(_copy_half, source, target, 1),
    )
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        await copying
        raise


def _copy_half(source: Arenas, target: Arenas, half: int) -> None:
    for dtype, array in source.items():
        middle = array.size // 2
        part = slice(middle, None) if half else slice(0, middle)
        np.copyto(target[dtype][part], array[part])
