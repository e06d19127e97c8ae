"""Reads a journal for recovery: the records that are there, in order, without a gap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from stepwell_core.errors import JournalInvalid

from stepwell_server.storage.journal import notes
from stepwell_server.storage.journal.folder import SegmentFile, segments
from stepwell_server.storage.journal.format import (
    Head,
    Identity,
    SegmentHeader,
    aligned,
    unpack_map,
)
from stepwell_server.storage.journal.segment_reader import SegmentReader, Window


@dataclass(frozen=True)
class Record:
    """A record that was read.

    Attributes:
        number: 0, 1, 2, ... for the life of a model.
        header: As it was appended.
        payload: Likewise, writable. It begins at a multiple of 64 bytes in memory. The memory is
            the reading's and valid until the next record is asked for.
    """

    number: int
    header: dict[str, Any]
    payload: memoryview


@dataclass(frozen=True)
class LastSegment:
    """How the newest segment of a history was written.

    Attributes:
        durability: `everysec` or `always`.
        boot_id: See `boot_id()`.
        has_failed: Whether the disk failed under it: under `everysec`, records that were answered
            may be missing.
    """

    durability: str
    boot_id: str
    has_failed: bool = False


@dataclass(frozen=True)
class _Segment:
    path: Path
    header: SegmentHeader
    begin: int  # of the first record
    limit: int | None  # a later segment has the records from this number on


class Reading:
    """The records of one history, from a number on. Iterate over it once, then ask how it ended.

    Attributes:
        next_number: The number after the last record; of the next that is to be appended.
        torn: File and offset where a record was begun and not finished, with whatever follows; None
            if there is nothing behind the last record.
        last: About the newest segment of this history; None if there is none. Known at once.
    """

    def __init__(
        self,
        found: list[_Segment],
        first_number: int,
        max_payload_bytes: int | None,
    ) -> None:
        self.next_number = first_number
        self.torn: tuple[Path, int] | None = None
        self.last: LastSegment | None = None
        if found:
            path, header = found[-1].path, found[-1].header
            has_failed = notes.has_failed(path, header.salt)
            self.last = LastSegment(header.durability, header.boot_id, has_failed)
        self._found = found
        self._max_payload_bytes = max_payload_bytes
        self._window = Window()

    def __iter__(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            JournalInvalid: A record that was on the disk is missing or damaged, or is none of such
                a model.
        """
        for segment in self._found:
            if segment.limit is not None and segment.limit <= self.next_number:
                continue
            with SegmentReader(segment.path, self._window) as file:
                if segment.header.first_number > self.next_number:
                    raise file.invalid(
                        0,
                        f"the records from {self.next_number} to {segment.header.first_number - 1} "
                        "are missing: the segment before this one is not there. Put it back",
                    )
                yield from self._records(file, segment)

    def _records(self, file: SegmentReader, segment: _Segment) -> Iterator[Record]:
        number, offset, limit = segment.header.first_number, segment.begin, segment.limit
        while limit is None or number < limit:
            head = file.head_at(offset, segment.header.salt)
            if head is not None and head.number == number:
                # A record from before the first one asked for is in the checkpoint already.
                record = self._record(file, offset, head) if number >= self.next_number else None
                if record is not None:
                    self.next_number = number + 1
                    yield record
                if record is not None or number < self.next_number:
                    number, offset = number + 1, _behind(offset, head)
                    continue
            place = self._after_damage(file, segment, offset, number)
            if place is None:
                return
            offset, number = place

    def _record(self, file: SegmentReader, offset: int, head: Head) -> Record | None:
        """Return the record at an offset; None if its payload is damaged."""
        most = self._max_payload_bytes
        if most is not None and head.payload_nbytes > most:
            raise file.invalid(
                offset,
                f"a record of this model has at most {most} bytes of payload. Received: "
                f"{head.payload_nbytes}",
            )
        packed_map, payload = file.record_at(offset, head)
        if xxhash.xxh3_64_intdigest(payload) != head.payload_checksum:
            return None
        try:
            return Record(head.number, unpack_map(packed_map), payload)
        except JournalInvalid as error:
            raise file.invalid(offset, error.message) from None

    def _after_damage(
        self, file: SegmentReader, segment: _Segment, offset: int, number: int
    ) -> tuple[int, int] | None:
        """Say where to go on when the record due at an offset is not there.

        Returns:
            Offset and number of a later record, if those between are not asked for; None if the
            journal ends here.

        Raises:
            JournalInvalid: The record was on the disk once.
        """
        missing = max(number, self.next_number)
        salt = segment.header.salt
        is_torn = file.has_trace_at(offset, salt)
        for place, head in file.heads_from(offset, salt):
            if number < head.number <= self.next_number:
                return place, head.number
            if head.durable > missing:
                raise self._bad_middle(file, offset, missing)
            is_torn = True
        if segment.limit is not None:
            if segment.limit > missing:
                raise self._bad_middle(file, offset, missing)
        elif is_torn:
            self.torn = (segment.path, offset)
        return None

    def _bad_middle(self, file: SegmentReader, offset: int, number: int) -> JournalInvalid:
        return file.invalid(
            offset,
            f"record {number} is missing or damaged, and a later one says that it was on the disk. "
            "Nothing was changed. Put the file back from a copy, or restore a checkpoint",
        )


def read(
    folder: Path,
    identity: Identity,
    first_number: int,
    *,
    max_payload_bytes: int | None = None,
) -> Reading:
    """Begin to read a journal; changes nothing.

    Call `sync_all` before, so that what is read is what the disk has.

    Args:
        folder: Of the journal; there may be none.
        identity: Segments of another incarnation do not count.
        first_number: Of the first record that is wanted, which may be in the middle of a segment.
        max_payload_bytes: What a record of the model can have at most; None believes the file.

    Raises:
        JournalInvalid: A segment that is needed is damaged, of a newer format, of another program,
            or of another model.
    """
    files = segments(folder)
    window = Window()
    ours: list[tuple[SegmentFile, SegmentHeader, int]] = []
    for index, file in enumerate(files):
        is_needed = all(later.first_number > first_number for later in files[index + 1 :])
        try:
            header, begin = _header_of(file, identity, window)
        except JournalInvalid:
            if is_needed:
                raise
            continue
        if header.identity.incarnation == identity.incarnation:
            ours.append((file, header, begin))
    firsts = [file.first_number for file, _, _ in ours]
    found = [
        _Segment(file.path, header, begin, min(firsts[index + 1 :], default=None))
        for index, (file, header, begin) in enumerate(ours)
    ]
    return Reading(found, first_number, max_payload_bytes)


def _header_of(file: SegmentFile, identity: Identity, window: Window) -> tuple[SegmentHeader, int]:
    with SegmentReader(file.path, window) as reader:
        header, begin = reader.header()
        if header.first_number != file.first_number:
            raise reader.invalid(
                0, f"its name says another first number than its header: {header.first_number}"
            )
        is_ours = header.identity.incarnation == identity.incarnation
        if header.identity.model != identity.model or (is_ours and header.identity != identity):
            raise reader.invalid(
                0,
                f"it belongs to model {header.identity.model!r} with the layout "
                f"{header.identity.layout!r}, not to {identity.model!r} with {identity.layout!r}; "
                "move it to where it belongs",
            )
    return header, begin


def _behind(offset: int, head: Head) -> int:
    return aligned(offset + head.nbytes)
