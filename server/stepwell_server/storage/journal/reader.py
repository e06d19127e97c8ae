"""Reads a model's journal after a stop or a crash. Changes nothing.

Records are taken in order up to the first that is not whole. Was that one on the disk before? Each
record says which were when it was written. If a later one says so of this, the file was damaged,
and the start is refused. Else it is the end that a crash tore off: nothing in it was promised.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from stepwell_core.errors import JournalInvalid

from stepwell_server.storage.journal.folder import SegmentName, segments
from stepwell_server.storage.journal.format import (
    BLOCK_BYTES,
    RECORD_MAGIC,
    Head,
    Identity,
    SegmentHeader,
    packed_map,
    unpack_head,
    unpack_map,
    unpack_segment_header,
)


@dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        number: Of the record.
        header: Its plain values.
        payload: Writable, private to the reader: what is written to it reaches no file. Good until
            the next record is asked for.
    """

    number: int
    header: dict[str, Any]
    payload: memoryview


@dataclass(frozen=True)
class LastSegment:
    """What the newest segment promised."""

    durability: str
    boot_id: str


@dataclass(frozen=True)
class _File:
    name: SegmentName
    content: memoryview
    header: SegmentHeader
    start: int  # of the first record


class Reading:
    """The records of one history from a number on; iterate it once, to its end.

    Args:
        folder: Of the journal.
        identity: Of the history; segments of others are left alone.
        first_number: Of the first record that is wanted.

    Raises:
        JournalInvalid: A segment cannot be read.

    Attributes:
        next_number: Behind the last record that was read.
        torn: File and offset at which the journal ends in something that is not whole; None if it
            does not.
        last: What the newest segment promised; None if there is none, or the first record that is
            wanted is not in the journal.
    """

    def __init__(self, folder: Path, identity: Identity, first_number: int) -> None:
        self.next_number = first_number
        self.torn: tuple[str, int] | None = None
        self._files = _files_of(folder, identity)
        if self._files and self._files[0].header.first_number > first_number:
            self._files = []  # the records in between are gone, with the checkpoint that had them
        self.last: LastSegment | None = None
        if self._files:
            newest = self._files[-1].header
            self.last = LastSegment(newest.durability, newest.boot_id)

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in order.

        Raises:
            JournalInvalid: A record that was on the disk is missing or damaged.
        """
        for file, following in zip(self._files, [*self._files[1:], None], strict=True):
            stop = None if following is None else following.header.first_number
            if stop is None or stop > self.next_number:
                yield from self._records(file, stop)
                if stop is not None and self.next_number < stop:
                    raise _missing(file, self._end, self.next_number)

    def _records(self, file: _File, stop: int | None) -> Iterator[Record]:
        """Yield the records of one file with numbers below `stop`."""
        offset, number = file.start, file.header.first_number
        while stop is None or number < stop:
            head = _record_at(file, offset)
            if head is None or head.number != number:
                break
            if number >= self.next_number:
                yield Record(number, _map_of(file, offset, head), _payload_of(file, offset, head))
                self.next_number = number + 1
            offset, number = offset + head.extent, number + 1
        self._end = offset
        if stop is None:
            self._look_behind(file, offset, number)

    def _look_behind(self, file: _File, offset: int, number: int) -> None:
        """Say what is behind the last whole record."""
        for later in _heads_behind(file, offset):
            head = unpack_head(RECORD_MAGIC, file.content, later)
            if head is None or head.salt != file.header.salt:
                continue
            if head.durable > number:
                raise _missing(file, offset, number)
            self.torn = str(file.name), offset


def read(folder: Path, identity: Identity, first_number: int) -> Reading:
    """Return the records of one history from a number on; see `Reading`."""
    return Reading(folder, identity, first_number)


def _files_of(folder: Path, identity: Identity) -> list[_File]:
    files = []
    for name in segments(folder):
        content = _content(folder / str(name))
        header, start = unpack_segment_header(content, str(name))
        if header.identity.incarnation != identity.incarnation:
            continue
        if header.identity != identity or header.first_number != name.first_number:
            raise JournalInvalid(
                f"The journal's segment {name} is another's: it says {header.identity}, first "
                f"record {header.first_number}. Expected: {identity}",
                file=str(name),
            )
        files.append(_File(name, content, header, start))
    return files


def _content(path: Path) -> memoryview:
    with open(path, "rb") as file:
        if not path.stat().st_size:
            return memoryview(bytearray())
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _record_at(file: _File, offset: int) -> Head | None:
    """Return the head of the record at an offset if it is whole, payload and all."""
    head = unpack_head(RECORD_MAGIC, file.content, offset)
    if head is None or head.salt != file.header.salt:
        return None
    payload = _payload_of(file, offset, head)
    return head if xxhash.xxh3_64_intdigest(payload) == head.payload_checksum else None


def _payload_of(file: _File, offset: int, head: Head) -> memoryview:
    begin = offset + head.payload_start
    return file.content[begin : begin + head.payload_bytes]


def _map_of(file: _File, offset: int, head: Head) -> dict[str, Any]:
    try:
        return unpack_map(packed_map(file.content, offset, head))
    except ValueError as error:
        raise JournalInvalid(
            f"Record {head.number} of the journal, in {file.name} at {offset}, is {error}",
            file=str(file.name),
            offset=offset,
        ) from None


def _heads_behind(file: _File, offset: int) -> Iterator[int]:
    """Yield the offsets of blocks from `offset` on that begin as a record of this segment does."""
    whole = len(file.content) // BLOCK_BYTES * BLOCK_BYTES
    if offset >= whole:
        return
    words = np.frombuffer(file.content[offset:whole], "<u8").reshape(-1, BLOCK_BYTES // 8)
    magic = np.frombuffer(RECORD_MAGIC, "<u4")[0]
    is_record = (words[:, 0].astype("<u4") == magic) & (words[:, 5] == np.uint64(file.header.salt))
    for block in np.flatnonzero(is_record):
        yield offset + int(block) * BLOCK_BYTES


def _missing(file: _File, offset: int, number: int) -> JournalInvalid:
    return JournalInvalid(
        f"Record {number} of the journal was on the disk, and is missing or damaged: {file.name} "
        f"at offset {offset}. Nothing was changed. Bring the file back from a backup, or move it "
        "and those after it away to go back to what is before it",
        file=str(file.name),
        offset=offset,
        number=number,
    )
