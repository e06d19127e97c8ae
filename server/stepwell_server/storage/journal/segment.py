"""One segment while it is being written. Nothing here is thread-safe but `sync`."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepwell_server.storage import disk
from stepwell_server.storage.journal.folder import boot_id
from stepwell_server.storage.journal.format import (
    ALIGNMENT,
    LEAST_LARGE_BYTES,
    RECORD_MAGIC,
    Identity,
    SegmentHeader,
    aligned,
    pack_segment_header,
    packed_entry,
    segment_name,
)
from stepwell_server.storage.journal.large import BounceBuffer, LargeWriter

FULL = {errno.ENOSPC, errno.EDQUOT}
"""The errors of a disk that has no room."""

LEAST_STEP_BYTES = 64 << 10
MOST_STEP_BYTES = 64 << 20
"""So much room is taken from the disk at once, unless a record is larger."""

_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


@dataclass(frozen=True)
class Beginning:
    """What a new segment is made from.

    Attributes:
        folder: Where it will lie.
        serial: Larger than that of any other segment there.
        identity: Whose records it will hold.
        first_number: Of its first record; all before it are on the disk.
        durability: How it will be written.
        max_bytes: Of the journal; an eighth of it is the most that is taken from the disk at once.
    """

    folder: Path
    serial: int
    identity: Identity
    first_number: int
    durability: str
    max_bytes: int

    @property
    def path(self) -> Path:
        """The file that it will be."""
        return self.folder / segment_name(self.serial, self.first_number)


class SegmentAbandoned(OSError):
    """A new segment has its name, perhaps durably, and is not used.

    Whatever the reason: a start may find it, and takes no record from the one before it any more.
    So nothing may be written to that one.
    """

    @classmethod
    def of(cls, error: BaseException) -> SegmentAbandoned:
        """Return one for the error that was met."""
        if isinstance(error, OSError):
            return cls(error.errno, error.strerror)
        return cls(errno.EIO, type(error).__name__)


class Segment:
    """A segment that takes records at its end.

    Made under another name, synced and only then renamed: whatever has a segment's name has a whole
    header.

    Args:
        beginning: What it is made from.
        bounce: See `LargeWriter`.
        recycled: An old file whose blocks are used again: they are written already, and writing
            them once more is faster. Its name is durable. None makes a new file.

    Raises:
        SegmentAbandoned: There may be such a segment.
        OSError: There is no such segment, but perhaps a leftover under a temporary name.
    """

    def __init__(
        self, beginning: Beginning, bounce: BounceBuffer, recycled: Path | None = None
    ) -> None:
        self.path = beginning.path
        self.first_number = beginning.first_number
        self.salt = secrets.randbits(64)
        self._most_step_bytes = aligned(min(MOST_STEP_BYTES, beginning.max_bytes // 8))
        self._allocated = 0  # bytes from the start that surely have room
        self._can_allocate = True
        header = pack_segment_header(
            SegmentHeader(
                beginning.identity,
                beginning.first_number,
                beginning.durability,
                boot_id(),
                self.salt,
            )
        )
        self.end = len(header)
        """Where the next record begins."""
        temporary = recycled or disk.temporary_beside(self.path)
        flags = os.O_RDWR | (0 if recycled else os.O_CREAT | os.O_EXCL)
        self._descriptor = disk.system.open(temporary, flags)
        try:
            # The header is on the disk before the name is: an old file's stale records must never
            # be found under a new name.
            disk.write_whole(self._descriptor, header, 0)
            disk.system.sync(self._descriptor)
            self._large = LargeWriter(temporary, self._descriptor, bounce)
            try:
                self._show(temporary)
            except BaseException:
                with contextlib.suppress(OSError):  # it must not take the first error's place
                    self._large.close()
                raise
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one that says what to do
                disk.system.close(self._descriptor)
            if not recycled:
                with contextlib.suppress(OSError):
                    disk.system.unlink(temporary)
            raise

    def _show(self, temporary: Path) -> None:
        """Give the file its name, durably; the last thing that may fail."""
        try:
            disk.system.rename(temporary, self.path)
            disk.sync_folder(self.path.parent)
        except BaseException as error:
            if not self.path.exists():
                raise
            raise SegmentAbandoned.of(error) from error

    def append(
        self,
        number: int,
        durable: int,
        packed_map: bytes,
        payload: Sequence[memoryview],
        payload_nbytes: int,
        checksum: int,
    ) -> None:
        """Write a record at the end.

        Args:
            number: Of the record.
            durable: All records with a smaller number are on the disk.
            packed_map: See `format.pack_map`.
            payload: Views of bytes.
            payload_nbytes: Their sum.
            checksum: Their xxh3_64.

        Raises:
            OSError: Nothing counts as written; the next record begins at the same place.
        """
        entry = packed_entry(
            RECORD_MAGIC, number, durable, self.salt, packed_map, payload_nbytes, checksum
        )
        if payload_nbytes >= LEAST_LARGE_BYTES:
            entry = entry.ljust(aligned(len(entry)), b"\0")
            size = len(entry) + aligned(payload_nbytes)
            self._allocate(self.end + size)
            self._large.write((memoryview(entry), *payload), self.end)
        else:
            gap = bytes(-len(entry) % ALIGNMENT)
            size = aligned(len(entry) + len(gap) + payload_nbytes)
            self._allocate(self.end + size)
            # Whole blocks: of a part of one the kernel would have to read the rest first.
            content = b"".join((entry, gap, *payload)).ljust(size, b"\0")
            disk.write_whole(self._descriptor, content, self.end)
        self.end += size

    def sync(self) -> None:
        """Wait until all that was written is on the disk; on any thread."""
        disk.system.sync_content(self._descriptor)

    def trim(self) -> None:
        """Give the room behind the last record back to the disk."""
        disk.system.truncate(self._descriptor, self.end)

    def close(self) -> None:
        """Close the file; nothing is synced."""
        try:
            self._large.close()
        finally:
            disk.system.close(self._descriptor)

    def _allocate(self, end: int) -> None:
        """Make sure of the room up to `end`, so that a full disk shows before a write.

        A step is as large as what is used: a small model takes little, a large one asks seldom.
        A record that is larger than a step takes what it needs.
        """
        if end <= self._allocated or not self._can_allocate:
            return
        step = max(LEAST_STEP_BYTES, min(end, self._most_step_bytes))
        goals = (max(end, self._allocated + step), end)
        for goal in goals:
            if self._has_allocated(goal, is_last_try=goal == end):
                return

    def _has_allocated(self, goal: int, *, is_last_try: bool) -> bool:
        before = os.fstat(self._descriptor).st_size
        try:
            disk.system.allocate(self._descriptor, self._allocated, goal - self._allocated)
        except OSError as error:
            if error.errno in _NO_ALLOCATION:
                self._can_allocate = False
                return True
            if error.errno in FULL:
                with contextlib.suppress(OSError):  # some of it may have been given
                    disk.system.truncate(self._descriptor, before)
                if not is_last_try:
                    return False
            raise
        self._allocated = goal
        return True
