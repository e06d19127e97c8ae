"""Writes large records past the page cache, from memory as it lies where that can be.

Writing 100 MB through the cache takes the kernel ten times as long as the disk. `O_DIRECT` wants
memory, offset and length at multiples of a block; what does not lie so goes through a buffer. Most
records take one call, since each costs the disk's latency.
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
ENOUGH_AT_ONCE = 64 << 20  # from here on another call is nothing to what the disk takes
MOST_PARTS = 256  # the kernel takes 1024

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
    """Writes large records into one file.

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
        batch = _Batch(self._bounce.view)
        for view in views:
            while view:
                view = view[batch.add(view) :]
                if batch.is_enough:
                    offset += self._put(batch.take(), offset)
        self._put(batch.take(), offset)

    def close(self) -> None:
        """Close what this object opened."""
        if self._direct is not None:
            descriptor, self._direct = self._direct, None
            disk.system.close(descriptor)

    def _put(self, parts: list[memoryview], offset: int) -> int:
        nbytes = 0
        while parts:
            written = self._put_some(parts, offset + nbytes)
            nbytes += written
            while parts and written >= len(parts[0]):
                written -= len(parts.pop(0))
            if written:
                parts[0] = parts[0][written:]
        return nbytes

    def _put_some(self, parts: list[memoryview], offset: int) -> int:
        if self._direct is not None:
            try:
                written = disk.system.pwritev(self._direct, parts, offset) & -BLOCK
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise
                self.close()
            else:
                if written:
                    return written
        return disk.system.pwritev(self._cached, parts, offset)


class _Batch:
    """What is to be written by one call: parts of whole blocks, in place or in the buffer."""

    def __init__(self, bounce: memoryview) -> None:
        self._bounce = bounce
        self._parts: list[memoryview] = []
        self._nbytes = 0  # of the parts
        self._start = self._end = 0  # of the bytes in the buffer that are in no part yet

    @property
    def is_enough(self) -> bool:
        """Whether it is time to `take`; all that is here is whole blocks then."""
        return self._end == len(self._bounce) or (
            self._end % BLOCK == 0
            and (self._nbytes >= ENOUGH_AT_ONCE or len(self._parts) >= MOST_PARTS)
        )

    def add(self, view: memoryview) -> int:
        """Take some bytes from the beginning of a view; return how many."""
        if self._end % BLOCK == 0 and len(view) >= BLOCK and _address(view) % BLOCK == 0:
            self._close_part()
            count = min(len(view) & -BLOCK, MOST_AT_ONCE)
            self._add_part(view[:count])
        else:
            count = min(len(view), len(self._bounce) - self._end)
            self._bounce[self._end : self._end + count] = view[:count]
            self._end += count
        return count

    def take(self) -> list[memoryview]:
        """Return the parts, with zeros up to the end of the last block, and begin anew."""
        padding = -self._end % BLOCK
        self._bounce[self._end : self._end + padding] = bytes(padding)
        self._end += padding
        self._close_part()
        parts, self._parts = self._parts, []
        self._nbytes = self._start = self._end = 0
        return parts

    def _close_part(self) -> None:
        if self._end > self._start:
            self._add_part(self._bounce[self._start : self._end])
            self._start = self._end

    def _add_part(self, part: memoryview) -> None:
        self._parts.append(part)
        self._nbytes += len(part)


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
