"""Buffers that nobody uses at the moment, by size, to be used again."""

from __future__ import annotations

from collections import deque

import numpy as np
from stepwell_core.layout import Array

GRAIN_BYTES = 1 << 16
"""Sizes are multiples of it. Smaller buffers are not kept: the allocator is as quick."""


PAGE_BYTES = 4096


class IdleBlocks:
    """Blocks of bytes by size, the one used last on top. Not thread-safe."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._blocks: dict[int, deque[tuple[int, Array]]] = {}
        self._count = 0  # of all that were ever kept: the age of a block
        self._count_at_trim = 0

    def take(self, nbytes: int) -> Array:
        """Return uninitialized bytes, at least so many: used before if there are any."""
        size = size_of(nbytes)
        blocks = self._blocks.get(size)
        if not blocks:
            return _aligned(size)
        self.nbytes -= size
        return blocks.pop()[1]

    def keep(self, block: Array) -> None:
        """Take a block for later, unless it is small."""
        if block.nbytes >= GRAIN_BYTES:
            self._count += 1
            self.nbytes += block.nbytes
            self._blocks.setdefault(block.nbytes, deque()).append((self._count, block))

    def shrink(self, most_bytes: int, wanted: int = 0) -> None:
        """Let go of the oldest blocks until there are `most_bytes` beside one of size `wanted`."""
        size = size_of(wanted)
        has_wanted = bool(self._blocks.get(size))
        while self.nbytes - (size if has_wanted else 0) > most_bytes:
            others = [
                blocks
                for own, blocks in self._blocks.items()
                if len(blocks) > (own == size and has_wanted)
            ]
            oldest = min(others, key=lambda blocks: blocks[0][0])
            self.nbytes -= oldest.popleft()[1].nbytes

    def trim(self) -> None:
        """Let go of all that was not used since the last call of `trim`."""
        for blocks in self._blocks.values():
            while blocks and blocks[0][0] <= self._count_at_trim:
                self.nbytes -= blocks.popleft()[1].nbytes
        self._blocks = {size: blocks for size, blocks in self._blocks.items() if blocks}
        self._count_at_trim = self._count


def _aligned(nbytes: int) -> Array:
    """Return new bytes; many begin at a page, so that a journal can write them as they lie."""
    if nbytes < GRAIN_BYTES:
        return np.empty(nbytes, np.uint8)
    block = np.empty(nbytes + PAGE_BYTES, np.uint8)
    start = -block.ctypes.data % PAGE_BYTES
    return block[start : start + nbytes]


def size_of(nbytes: int) -> int:
    """Return the size of the block for so many bytes."""
    return nbytes if nbytes < GRAIN_BYTES else -(-nbytes // GRAIN_BYTES) * GRAIN_BYTES
