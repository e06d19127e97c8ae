"""One segment while it is written: where its next record goes, and how its bytes get there.

Small records are one buffered write. The payload of a large one goes to the disk past the page
cache, from where it lies if that is aligned: fresh pages of the cache cost eight times as much as
the disk itself (docs/decisions/0010). The head is written last, so a record without one never was.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from stepwell_core.layout import Array, byte_view

from stepwell_server.storage import disk
from stepwell_server.storage.journal.format import (
    BLOCK_BYTES,
    LARGE_BYTES,
    RECORD_MAGIC,
    Head,
    SegmentHeader,
    pack,
    pack_segment_header,
    payload_start,
)

BOUNCE_BYTES = 4 << 20
"""Through which payloads go that are not aligned, or in several pieces."""

WRITE_BYTES = 256 << 20
"""Of one call at most."""

LEAST_GROWTH_BYTES = 1 << 20
MOST_GROWTH_BYTES = 64 << 20


class Segment:
    """A file that records are appended to. The lane's; `sync` may be called by another thread.

    Args:
        path: Of the file; it exists, with this header.
        header: Of the segment.
        allocated: Bytes that the file has on the disk already.
    """

    def __init__(self, path: Path, header: SegmentHeader, allocated: int) -> None:
        self.path = path
        self.header = header
        self.nbytes = len(pack_segment_header(header))  # where the next record begins
        self._allocated = allocated
        self._file = disk.system.open(path, os.O_RDWR)
        self._direct = self._open_direct()
        self._bounce: Array | None = None

    def _open_direct(self) -> int | None:
        try:
            return disk.system.open(self.path, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                disk.system.close(self._file)
                raise
            return None  # a file system in memory has no other way

    def append(
        self, number: int, durable: int, packed: bytes, payload: Sequence[memoryview], checksum: int
    ) -> None:
        """Write a record at the end.

        Raises:
            OSError: It is not there; the next one is written in its place.
        """
        nbytes = sum(view.nbytes for view in payload)
        start = payload_start(len(packed), nbytes)
        head = Head(len(packed), number, durable, start, nbytes, self.header.salt, checksum)
        self._allocate(self.nbytes + head.extent)
        begin = pack(RECORD_MAGIC, head, packed)
        if nbytes < LARGE_BYTES:
            parts: list[bytes | memoryview] = [begin.ljust(start, b"\0"), *payload]
            content = b"".join(parts).ljust(head.extent, b"\0")
            disk.write_whole(self._file, content, self.nbytes)
        else:
            self._write_large(payload, self.nbytes + start)
            disk.write_whole(self._file, begin.ljust(start, b"\0"), self.nbytes)
        self.nbytes += head.extent

    def _allocate(self, nbytes: int) -> None:
        """Make sure that the file has room for so many bytes in all, and for some more."""
        if nbytes <= self._allocated:
            return
        growth = min(max(self._allocated, LEAST_GROWTH_BYTES), MOST_GROWTH_BYTES)
        for wanted in (self._allocated + growth, nbytes):
            wanted = max(wanted, nbytes)
            try:
                disk.system.allocate(self._file, self._allocated, wanted - self._allocated)
            except OSError as error:
                if error.errno == errno.ENOSPC and wanted > nbytes:
                    continue  # what is needed may still be there
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
            self._allocated = wanted
            return

    # Past the page cache

    def _write_large(self, payload: Sequence[memoryview], offset: int) -> None:
        for piece in self._aligned(payload):
            self._write_blocks(piece, offset)
            offset += len(piece)

    def _aligned(self, payload: Sequence[memoryview]) -> Iterator[memoryview]:
        """Yield a payload as aligned pieces of whole blocks, the last one with zeros behind it.

        A piece is good until the next one is asked for.
        """
        views = [np.frombuffer(view, np.uint8) for view in payload if view.nbytes]
        rest = views
        if len(views) == 1 and views[0].ctypes.data % BLOCK_BYTES == 0:
            whole = views[0].size // BLOCK_BYTES * BLOCK_BYTES
            for start in range(0, whole, WRITE_BYTES):
                yield byte_view(views[0][start : min(start + WRITE_BYTES, whole)])
            rest = [views[0][whole:]] if whole < views[0].size else []
        yield from self._bounced(rest)

    def _bounced(self, views: Sequence[Array]) -> Iterator[memoryview]:
        if self._bounce is None:
            self._bounce = np.frombuffer(mmap.mmap(-1, BOUNCE_BYTES), np.uint8)
        bounce, filled = self._bounce, 0
        for view in views:
            start = 0
            while start < view.size:
                count = min(view.size - start, bounce.size - filled)
                bounce[filled : filled + count] = view[start : start + count]
                start, filled = start + count, filled + count
                if filled == bounce.size:
                    yield byte_view(bounce)
                    filled = 0
        if filled:
            end = -(-filled // BLOCK_BYTES) * BLOCK_BYTES
            bounce[filled:end] = 0
            yield byte_view(bounce[:end])

    def _write_blocks(self, blocks: memoryview, offset: int) -> None:
        if self._direct is not None:
            try:
                disk.write_whole(self._direct, blocks, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                disk.system.close(self._direct)  # it opens such files and does not write them
                self._direct = None
            else:
                return
        disk.write_whole(self._file, blocks, offset)

    # The end

    def sync(self) -> None:
        """Wait until all that was appended is on the disk.

        Raises:
            OSError: It is not known to be, and never will be.
        """
        disk.system.sync_content(self._file)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            if self._direct is not None:
                disk.system.close(self._direct)
            disk.system.close(self._file)


def create(path: Path, header: SegmentHeader, recycled: Path) -> Segment:
    """Make a segment, durably, from the blocks of `recycled` if there is such a file."""
    temporary = disk.temporary_beside(path)
    content, allocated = pack_segment_header(header), 0
    if recycled.exists():
        # Out of sight of a later start first: no header there is ever half one and half another.
        disk.system.rename(recycled, temporary)
        file = disk.system.open(temporary, os.O_RDWR)
        try:
            disk.write_whole(file, content, 0)
            disk.system.sync(file)
            allocated = os.fstat(file).st_size
        finally:
            disk.system.close(file)
    else:
        with disk.NewFile(temporary) as new:
            new.write(content)
            allocated = new.nbytes
    disk.system.rename(temporary, path)
    disk.sync_folder(path.parent)
    return Segment(path, header, allocated)
