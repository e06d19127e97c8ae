"""What lies in a segment of the journal; docs/journal-format.md says the same for other readers.

A segment is made of blocks of 4096 bytes. Its header, and each record, begins at a block:

    offset  size
    0       4     magic: "SWJS" in a segment's header, "SWJR" in a record
    4       4     bytes of the map
    8       8     number of the record; in the header, that of the segment's first record
    16      8     durable: all records with smaller numbers were on the disk before this was written
    24      4     where the payload begins, from here; 0 if there is none
    28      4     0
    32      8     bytes of the payload
    40      8     salt of the segment
    48      8     xxh3_64 of the payload
    56      8     xxh3_64 of the 56 bytes before and the map
    64            the map, msgpack; then zeros, the payload, zeros up to the next block

Numbers are little-endian. A file is used again for another segment, so behind the last record there
may be records of an earlier life; they have another salt.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgpack
import xxhash
from stepwell_core.errors import JournalInvalid

FORMAT = "stepwell-journal"
FORMAT_VERSION = 1

BLOCK_BYTES = 4096
SEGMENT_MAGIC = b"SWJS"
RECORD_MAGIC = b"SWJR"

HEAD = struct.Struct("<4sIQQIIQQQ")
CHECKSUM = struct.Struct("<Q")
HEAD_BYTES = HEAD.size + CHECKSUM.size

MAX_MAP_BYTES = 32 << 20
"""The names of all tensors of the largest layout, and the results of 10,000 workers."""

LARGE_BYTES = 1 << 16
"""From here on a payload begins at a block, so that it can go to the disk past the page cache."""

SMALL_ALIGNMENT = 64
"""Where smaller payloads begin: a line of the cache."""


@dataclass(frozen=True)
class Identity:
    """Which history a journal belongs to.

    Attributes:
        model: Its name.
        layout: The hash of its tensors.
        incarnation: Of the history.
    """

    model: str
    layout: str
    incarnation: str


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says about itself.

    Attributes:
        identity: Of the journal.
        first_number: Of its first record.
        durability: "everysec" or "always": what its writer promised.
        boot_id: Of the kernel it was written under; a kill -9 leaves the page cache, a boot does
            not.
        salt: In each of its records.
    """

    identity: Identity
    first_number: int
    durability: str
    boot_id: str
    salt: int


@dataclass(frozen=True)
class Head:
    """The beginning of a record, or of a segment's header."""

    map_bytes: int
    number: int
    durable: int
    payload_start: int
    payload_bytes: int
    salt: int
    payload_checksum: int

    @property
    def extent(self) -> int:
        """Bytes up to where the next record begins."""
        content = HEAD_BYTES + self.map_bytes
        if self.payload_start:
            content = self.payload_start + self.payload_bytes
        return rounded_up(content, BLOCK_BYTES)


def rounded_up(nbytes: int, unit: int) -> int:
    """Return the next multiple of `unit`."""
    return -(-nbytes // unit) * unit


def payload_start(map_bytes: int, payload_bytes: int) -> int:
    """Return where a payload begins, from the beginning of its record."""
    if not payload_bytes:
        return 0
    unit = BLOCK_BYTES if payload_bytes >= LARGE_BYTES else SMALL_ALIGNMENT
    return rounded_up(HEAD_BYTES + map_bytes, unit)


def pack(magic: bytes, head: Head, packed: bytes) -> bytes:
    """Return head and map."""
    first = HEAD.pack(
        magic,
        head.map_bytes,
        head.number,
        head.durable,
        head.payload_start,
        0,
        head.payload_bytes,
        head.salt,
        head.payload_checksum,
    )
    return b"".join((first, CHECKSUM.pack(_checksum(first, packed)), packed))


def unpack_head(magic: bytes, content: memoryview, offset: int) -> Head | None:
    """Return the head at an offset if it is whole, its map included, else None.

    Nothing is allocated before the sizes were held against the content's. The payload is not looked
    at, but lies inside of the content.
    """
    if offset + HEAD_BYTES > len(content):
        return None
    found, map_bytes, number, durable, start, zero, size, salt, checksum = HEAD.unpack_from(
        content, offset
    )
    if found != magic or zero or map_bytes > MAX_MAP_BYTES:
        return None
    head = Head(map_bytes, number, durable, start, size, salt, checksum)
    has_place = start >= HEAD_BYTES + map_bytes if start else not size
    if not has_place or offset + head.extent > len(content):
        return None
    first = content[offset : offset + HEAD.size]
    (expected,) = CHECKSUM.unpack_from(content, offset + HEAD.size)
    return head if _checksum(first, packed_map(content, offset, head)) == expected else None


def packed_map(content: memoryview, offset: int, head: Head) -> memoryview:
    """Return the map of a record at an offset, packed."""
    begin = offset + HEAD_BYTES
    return content[begin : begin + head.map_bytes]


def pack_map(values: Mapping[str, Any]) -> bytes:
    """Return a map as msgpack.

    Raises:
        JournalInvalid: It is larger than a reader takes.
    """
    packed: bytes = msgpack.packb(dict(values))
    if len(packed) > MAX_MAP_BYTES:
        raise JournalInvalid(f"A record's map has at most {MAX_MAP_BYTES} bytes: {len(packed)}")
    return packed


def unpack_map(packed: memoryview) -> dict[str, Any]:
    """Return a map from msgpack.

    Raises:
        ValueError: It is not one of strings, numbers, lists, maps and bytes.
    """
    try:
        values = msgpack.unpackb(packed, max_ext_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ValueError(f"not msgpack ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise ValueError("not a map")
    return values


def pack_segment_header(header: SegmentHeader) -> bytes:
    """Return the header of a segment: whole blocks."""
    packed = pack_map(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **asdict(header.identity),
            "durability": header.durability,
            "boot_id": header.boot_id,
        }
    )
    number = header.first_number
    head = Head(len(packed), number, number, 0, 0, header.salt, 0)
    return pack(SEGMENT_MAGIC, head, packed).ljust(head.extent, b"\0")


def unpack_segment_header(content: memoryview, name: str) -> tuple[SegmentHeader, int]:
    """Return the header of a segment, and where its first record begins.

    Raises:
        JournalInvalid: It is damaged, of a newer format, or of another program.
    """
    head = unpack_head(SEGMENT_MAGIC, content, 0)
    try:
        if head is None:
            raise ValueError("its first block is not a segment's header, or is damaged")
        values = unpack_map(packed_map(content, 0, head))
        if values.get("format") != FORMAT or values.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"it has the format {str(values.get('format'))[:40]!r} version "
                f"{str(values.get('format_version'))[:40]}, and this server reads {FORMAT!r} "
                f"version {FORMAT_VERSION}"
            )
        texts = [values[key] for key in ("model", "layout", "incarnation", "durability", "boot_id")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a field is not text")
    except (ValueError, KeyError) as error:
        raise JournalInvalid(
            f"The journal's segment {name} cannot be read: {error}. Bring it back from a backup, "
            "use the Stepwell that wrote it, or move it away to go back to the last checkpoint",
            file=name,
            offset=0,
        ) from None
    model, layout, incarnation, durability, boot_id = texts
    identity = Identity(model, layout, incarnation)
    return SegmentHeader(identity, head.number, durability, boot_id, head.salt), head.extent


def _checksum(first: bytes | memoryview, packed: bytes | memoryview) -> int:
    checksum = xxhash.xxh3_64(first)
    checksum.update(packed)
    return checksum.intdigest()
