"""Writes large payloads past the page cache, from memory as it lies where that can be.

Writing 100 MB through the cache takes the kernel ten times as long as the disk. `O_DIRECT` wants
memory, offset and length at multiples of a block; what does not lie so goes through a buffer.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stepwell_server.storage import disk
from stepwell_server.storage.journal.format import BLOCK

BOUNCE_BYTES = 4 << 20
MOST_AT_ONCE = 1 << 30  # the kernel takes at most 2 GiB less a page in one call

REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP}
"""What a file system answers that has no `O_DIRECT`: some at opening, some at the first write."""


class BounceBuffer:
    """Aligned memory for what is not, made when it is first needed. For one thread."""

    def __init__(self) -> None:
        self._view: memoryview | None = None

    @property
    def view(self) -> memoryview:
        """The memory; a whole number of blocks."""
        if self._view is None:
            self._view = memoryview(mmap.mmap(-1, BOUNCE_BYTES))
        return self._view


class LargeWriter:
    """Writes payloads into one file.

    Args:
        path: Of the file.
        descriptor: Of the same file, writes through the cache; stays the caller's. It is used where
            the file system has no `O_DIRECT`.
        bounce: For memory that does not lie as it must.
    """

    def __init__(self, path: Path, descriptor: int, bounce: BounceBuffer) -> None:
        self._cached = descriptor
        self._bounce = bounce
        self._direct: int | None = None
        try:
            self._direct = disk.system.open(path, os.O_WRONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno not in REFUSALS:
                raise

    @property
    def is_direct(self) -> bool:
        """Whether writes go past the cache."""
        return self._direct is not None

    def write(self, views: Iterable[memoryview], offset: int) -> None:
        """Write views one behind the other, then zeros up to the end of the last block.

        Args:
            views: Of bytes; only read, and never copied as a whole.
            offset: A multiple of a block.
        """
        bounce, filled = self._bounce.view, 0
        for view in views:
            while view:
                if not filled and len(view) >= BLOCK and _address(view) % BLOCK == 0:
                    count = min(len(view) & -BLOCK, MOST_AT_ONCE)
                    self._put(view[:count], offset)
                    offset += count
                else:
                    count = min(len(view), len(bounce) - filled)
                    bounce[filled : filled + count] = view[:count]
                    filled += count
                view = view[count:]
                if filled == len(bounce):
                    self._put(bounce, offset)
                    offset, filled = offset + filled, 0
        if filled:
            padding = -filled % BLOCK
            bounce[filled : filled + padding] = bytes(padding)
            self._put(bounce[: filled + padding], offset)

    def close(self) -> None:
        """Close what this object opened."""
        if self._direct is not None:
            descriptor, self._direct = self._direct, None
            disk.system.close(descriptor)

    def _put(self, piece: memoryview, offset: int) -> None:
        while piece:
            written = self._put_some(piece, offset)
            piece, offset = piece[written:], offset + written

    def _put_some(self, piece: memoryview, offset: int) -> int:
        if self._direct is not None:
            try:
                written = disk.system.pwrite(self._direct, piece, offset) & -BLOCK
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise
                self.close()
            else:
                if written:
                    return written
        return disk.system.pwrite(self._cached, piece, offset)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
