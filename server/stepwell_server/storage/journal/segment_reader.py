"""Reads one segment: what stands where, one entry in memory at a time."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from stepwell_core.errors import JournalInvalid

from stepwell_server.storage.journal.format import (
    BLOCK,
    HEAD,
    RECORD_MAGIC,
    SALT_OFFSET,
    SEGMENT_MAGIC,
    Head,
    SegmentHeader,
    aligned,
    is_head_whole,
    parse_head,
    read_segment_header,
    unpack_map,
)

WINDOW_BYTES = 1 << 20
SCAN_BYTES = 4 << 20
MOST_AT_ONCE = 1 << 30

_WORD = np.dtype("<u8")


class Window:
    """Aligned memory that shows a part of a file; one for all segments of a reading."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, SCAN_BYTES))

    def of(self, nbytes: int) -> memoryview:
        """Return at least that many bytes, a whole number of blocks.

        Raises:
            MemoryError: There are not so many.
        """
        if nbytes > len(self._memory):
            try:
                self._memory = memoryview(mmap.mmap(-1, aligned(nbytes)))
            except (OSError, ValueError, OverflowError):
                raise MemoryError from None
        return self._memory


class SegmentReader:
    """A segment that is being read. A context manager; changes nothing. For one thread.

    Args:
        path: Of the file.
        window: Where what is read goes. What `at` returned is valid until the next call of any
            method here.

    Raises:
        JournalInvalid: It cannot be opened.
    """

    def __init__(self, path: Path, window: Window) -> None:
        self.path = path
        self._window = window
        self._start, self._shown = 0, memoryview(b"")  # what the window shows
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags)
            self.nbytes = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise self.invalid(0, f"it cannot be opened ({error.strerror})") from None
        self._direct: int | None
        try:
            # Past the cache: it is faster, and it is the disk that counts.
            self._direct = os.open(path, flags | os.O_DIRECT)
        except OSError:
            self._direct = None

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)
        if self._direct is not None:
            os.close(self._direct)

    def invalid(self, offset: int, why: str) -> JournalInvalid:
        """Return the error for something at an offset."""
        return JournalInvalid(f"{self.path} at {offset}: {why}", file=str(self.path), offset=offset)

    def header(self) -> tuple[SegmentHeader, int]:
        """Return what the segment says about itself, and where its first record begins.

        Raises:
            JournalInvalid: It is not a segment that this server reads.
        """
        head = parse_head(self.at(0, HEAD.size), SEGMENT_MAGIC, self.nbytes)
        if head is None:
            raise self.invalid(
                0, "there is no header of a segment; the file is damaged, or foreign"
            )
        content = self.at(0, head.payload_offset)
        if not is_head_whole(head, content):
            raise self.invalid(0, "the header does not match its checksum")
        try:
            header = read_segment_header(head, self._map(head, content))
        except JournalInvalid as error:
            raise self.invalid(0, error.message) from None
        return header, aligned(head.nbytes)

    def head_at(self, offset: int, salt: int) -> Head | None:
        """Return the head of the record at an offset; None if there is none that is whole."""
        head = parse_head(self.at(offset, HEAD.size), RECORD_MAGIC, self.nbytes - offset)
        if head is None or head.salt != salt:
            return None
        content = self.at(offset, HEAD.size + head.map_nbytes)
        return head if is_head_whole(head, content) else None

    def has_trace_at(self, offset: int, salt: int) -> bool:
        """Return whether a record of this segment was begun at an offset, whole or not."""
        content = bytes(self.at(offset, HEAD.size))
        return content.startswith(RECORD_MAGIC) and content[
            SALT_OFFSET : SALT_OFFSET + 8
        ] == salt.to_bytes(8, "little")

    def heads_from(self, offset: int, salt: int) -> Iterator[tuple[int, Head]]:
        """Yield offset and head of all records from an offset on, by looking at every block."""
        magic = int.from_bytes(RECORD_MAGIC, "little")
        while (offset := self._next_written(offset)) < self.nbytes:
            content = self.at(offset, min(SCAN_BYTES, self.nbytes - offset))
            count = len(content) // BLOCK
            words = np.frombuffer(content, _WORD, count * (BLOCK // 8)).reshape(count, BLOCK // 8)
            begins = (words[:, 0] == magic) & (words[:, SALT_OFFSET // 8] == salt)
            found = [offset + int(index) * BLOCK for index in np.flatnonzero(begins)]
            # The last block of a file that was cut is not whole, and may still have a record.
            if len(content) % BLOCK:
                found.append(offset + count * BLOCK)
            for place in found:
                head = self.head_at(place, salt)
                if head is not None:
                    yield place, head
            offset += aligned(len(content))

    def record_at(self, offset: int, head: Head) -> tuple[memoryview, memoryview]:
        """Return map and payload of a record, neither checked; see `Window` for how long.

        Raises:
            JournalInvalid: There is not so much memory.
        """
        content = self.at(offset, head.nbytes)
        return content[HEAD.size : HEAD.size + head.map_nbytes], content[head.payload_offset :]

    def at(self, offset: int, nbytes: int) -> memoryview:
        """Return the bytes from an offset on; fewer at the end of the file.

        Raises:
            JournalInvalid: The disk cannot read them, or there is not so much memory.
        """
        end = min(offset + nbytes, self.nbytes)
        if offset < self._start or end > self._start + len(self._shown):
            self._show(offset & -BLOCK, end)
        return self._shown[offset - self._start : max(end, offset) - self._start]

    def _show(self, start: int, end: int) -> None:
        nbytes = min(max(end - start, WINDOW_BYTES), self.nbytes - start)
        try:
            memory = self._window.of(nbytes)
        except MemoryError:
            raise self.invalid(start, f"{nbytes} bytes do not fit into memory") from None
        filled = 0
        try:
            while filled < nbytes:
                count = min(aligned(nbytes) - filled, MOST_AT_ONCE)
                read = self._read(memory[filled : filled + count], start + filled)
                if not read:
                    raise self.invalid(start + filled, "the file was cut while it was read")
                filled += read
        except OSError as error:
            raise self.invalid(start + filled, f"it cannot be read ({error.strerror})") from None
        self._start, self._shown = start, memory[: min(filled, nbytes)]

    def _read(self, memory: memoryview, offset: int) -> int:
        if self._direct is not None and offset % BLOCK == 0:
            try:
                return os.preadv(self._direct, [memory], offset)
            except OSError:  # some file systems refuse at the first use
                os.close(self._direct)
                self._direct = None
        return os.preadv(self._descriptor, [memory], offset)

    def _next_written(self, offset: int) -> int:
        """Return the next block that was ever written: a file has room beyond its records."""
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA) & -BLOCK
        except OSError as error:
            # ENXIO says that there is none; others do not know.
            return self.nbytes if error.errno == errno.ENXIO else offset

    def _map(self, head: Head, content: memoryview) -> dict[str, object]:
        return unpack_map(content[HEAD.size : HEAD.size + head.map_nbytes])
