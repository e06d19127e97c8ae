"""The bytes of a journal, as pure functions: heads, maps, checksums. See docs/journal-format.md.

A segment is a file of blocks of 4096 bytes. An *entry* begins at a block boundary: a head of 64
bytes, a msgpack map behind it, then a payload. The first entry of a segment says what the segment
is, all others are records:

    offset  type  field
         0  8 B   magic, "STWLSEG1" or "STWLREC1"
         8  u64   number           of the record; of a segment, that of its first record
        16  u64   durable          all records with a smaller number were on the disk by then
        24  u64   salt             the segment's own
        32  u64   payload_nbytes
        40  u32   map_nbytes
        44  u32   payload_offset   from the entry's start
        48  u64   payload_checksum xxh3_64 of the payload
        56  u64   head_checksum    xxh3_64 of the bytes before it, and of the map

All numbers are little-endian.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack
import xxhash
from stepwell_core.errors import JournalInvalid, shown

FORMAT = "stepwell-journal"
FORMAT_VERSION = 1

BLOCK = 4096
SEGMENT_MAGIC = b"STWLSEG1"
RECORD_MAGIC = b"STWLREC1"
HEAD = struct.Struct("<8sQQQQIIQQ")
CHECKED_BYTES = 56  # of the head: all before its own checksum
SALT_OFFSET = 24
MOST = (1 << 64) - 1

ALIGNMENT = 64
"""Where a small payload begins, so that it can be read in place as any dtype."""

LEAST_LARGE_BYTES = 64 * 1024
"""From this size on a payload begins at a block, so that it can be written past the page cache."""

MAX_MAP_BYTES = 4 << 20
"""A record of a synchronous step names its contributors, up to 10,000 at some 200 bytes each."""

MAX_MAP_DEPTH = 32

_NAME = re.compile(r"^(\d{8,18})-(\d{1,20})\.segment$")


class Head(NamedTuple):
    """The fixed part of an entry; see the table above."""

    magic: bytes
    number: int
    durable: int
    salt: int
    payload_nbytes: int
    map_nbytes: int
    payload_offset: int
    payload_checksum: int
    head_checksum: int

    @property
    def nbytes(self) -> int:
        """How many bytes the entry has, without the zeros up to the next block."""
        return self.payload_offset + self.payload_nbytes


@dataclass(frozen=True)
class Identity:
    """Whose records a segment holds.

    Attributes:
        model: Its name.
        layout: The hash of its layout.
        incarnation: The history that the records belong to.
    """

    model: str
    layout: str
    incarnation: str


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says about itself.

    Attributes:
        identity: Whose records it holds.
        first_number: Of its first record.
        durability: `everysec` or `always`: how it was written.
        boot_id: Of the running kernel when it was begun.
        salt: Only entries with the same one are the segment's; others are from an earlier life of
            the file.
    """

    identity: Identity
    first_number: int
    durability: str
    boot_id: str
    salt: int


def aligned(nbytes: int, unit: int = BLOCK) -> int:
    """Return the smallest multiple of `unit`, a power of two, that is not less."""
    return (nbytes + unit - 1) & -unit


def payload_offset(map_nbytes: int, payload_nbytes: int) -> int:
    """Return where a payload begins, from its entry's start."""
    is_large = payload_nbytes >= LEAST_LARGE_BYTES
    return aligned(HEAD.size + map_nbytes, BLOCK if is_large else ALIGNMENT)


def segment_name(serial: int, first_number: int) -> str:
    """Return the name of a segment's file."""
    return f"{serial:08d}-{first_number}.segment"


def parse_name(name: str) -> tuple[int, int] | None:
    """Return serial number and first number of a segment's file; None for any other file."""
    match = _NAME.match(name)
    return (int(match[1]), int(match[2])) if match else None


def packed_entry(
    magic: bytes,
    number: int,
    durable: int,
    salt: int,
    packed_map: bytes,
    payload_nbytes: int = 0,
    payload_checksum: int | None = None,
) -> bytes:
    """Return an entry's head and map.

    Args:
        magic: `SEGMENT_MAGIC` or `RECORD_MAGIC`.
        number: See the table; so for the others.
        durable: All records with a smaller number are on the disk.
        salt: Of the segment.
        packed_map: In msgpack.
        payload_nbytes: How many bytes will stand at `payload_offset`.
        payload_checksum: Their xxh3_64; None where there are none.
    """
    checksum = xxhash.xxh3_64_intdigest(b"") if payload_checksum is None else payload_checksum
    offset = payload_offset(len(packed_map), payload_nbytes)
    head = HEAD.pack(
        magic, number, durable, salt, payload_nbytes, len(packed_map), offset, checksum, 0
    )[:CHECKED_BYTES]
    head_checksum = xxhash.xxh3_64_intdigest(head + packed_map)
    return head + head_checksum.to_bytes(8, "little") + packed_map


def parse_head(block: bytes | memoryview, magic: bytes, room: int) -> Head | None:
    """Return the head at the start of `block` if it can be one, its checksum unseen.

    Args:
        block: At least `HEAD.size` bytes.
        magic: That it must have.
        room: How many bytes the file has from here on; a head that says more is none.
    """
    if len(block) < HEAD.size:
        return None
    head = Head(*HEAD.unpack_from(block))
    is_possible = (
        head.magic == magic
        and head.map_nbytes <= MAX_MAP_BYTES
        and head.payload_offset == payload_offset(head.map_nbytes, head.payload_nbytes)
        and head.nbytes <= room
    )
    return head if is_possible else None


def is_head_whole(head: Head, content: bytes | memoryview) -> bool:
    """Return whether head and map match their checksum.

    Args:
        head: From `parse_head`.
        content: The entry's bytes, up to the end of its map at least.
    """
    digest = xxhash.xxh3_64(content[:CHECKED_BYTES])
    digest.update(content[HEAD.size : HEAD.size + head.map_nbytes])
    return digest.intdigest() == head.head_checksum


def pack_map(values: Mapping[str, Any]) -> bytes:
    """Return a map in msgpack.

    Raises:
        JournalInvalid: It is larger than a reader takes.
    """
    packed: bytes = msgpack.packb(dict(values))
    if len(packed) > MAX_MAP_BYTES:
        raise JournalInvalid(
            f"The map of a record has at most {MAX_MAP_BYTES} bytes. Received: {len(packed)}"
        )
    return packed


def unpack_map(packed: bytes | memoryview) -> dict[str, Any]:
    """Return the map that `pack_map` packed; its memory is in proportion to its size.

    Raises:
        JournalInvalid: It is not a map with string keys, it nests too deep, or has extension types.
    """
    try:
        values = msgpack.unpackb(packed, max_ext_len=0, ext_hook=_refuse_extension)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise JournalInvalid(
            f"A record's map is not msgpack of plain values ({type(error).__name__})"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise JournalInvalid(
            f"A record has a map with string keys. Received: {type(values).__name__}"
        )
    level: list[Any] = [values]
    for _ in range(MAX_MAP_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return values
    raise JournalInvalid(f"A record's map has at most {MAX_MAP_DEPTH} levels. Received: more")


def pack_segment_header(header: SegmentHeader) -> bytes:
    """Return the first entry of a segment, filled with zeros up to the end of its block."""
    identity = header.identity
    packed_map = pack_map(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": identity.model,
            "layout": identity.layout,
            "incarnation": identity.incarnation,
            "first_number": header.first_number,
            "durability": header.durability,
            "boot_id": header.boot_id,
            "salt": header.salt,
        }
    )
    number = header.first_number
    entry = packed_entry(SEGMENT_MAGIC, number, number, header.salt, packed_map)
    return entry.ljust(aligned(len(entry)), b"\0")


def read_segment_header(head: Head, values: Mapping[str, Any]) -> SegmentHeader:
    """Return what a segment's first entry says.

    Raises:
        JournalInvalid: It is of a newer version or another program, or lacks something.
    """
    form, version = values.get("format"), values.get("format_version")
    if form != FORMAT or version != FORMAT_VERSION or isinstance(version, bool):
        raise JournalInvalid(
            f"This server reads the journal format {FORMAT!r} version {FORMAT_VERSION}. Received: "
            f"{shown(form)} version {shown(version)}; start the server that wrote it"
        )
    texts = [values.get(key) for key in ("model", "layout", "incarnation", "durability", "boot_id")]
    if not all(isinstance(text, str) for text in texts):
        raise JournalInvalid(
            "A segment says its model, layout, incarnation, durability and boot_id in strings. "
            f"Received: {shown(texts)}"
        )
    if (values.get("first_number"), values.get("salt")) != (head.number, head.salt):
        raise JournalInvalid(
            "A segment says the same first_number and salt in its head and in its map. Received: "
            f"{head.number}, {head.salt} and {shown(values.get('first_number'))}, "
            f"{shown(values.get('salt'))}"
        )
    model, layout, incarnation, durability, boot_id = map(str, texts)
    return SegmentHeader(
        Identity(model, layout, incarnation), head.number, durability, boot_id, head.salt
    )


def _refuse_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code}")
