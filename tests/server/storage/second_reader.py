"""A reader of journals that was written from docs/journal-format.md alone: slow, and short.

It shares no line with the server. Where the two differ, one of them or the page is wrong.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import xxhash

BLOCK = 4096


class Refused(Exception):
    """The journal must not be read."""


class Entry(NamedTuple):
    number: int
    durable: int
    salt: int
    values: bytes
    payload: bytes
    is_whole: bool  # head and payload; the head alone always is
    end: int  # where the next one begins


def entry_at(content: bytes, offset: int, magic: bytes) -> Entry | None:
    """The entry at an offset if its head is whole."""
    head = content[offset : offset + 64]
    if len(head) < 64 or head[:8] != magic:
        return None

    def field(start: int, nbytes: int) -> int:
        return int.from_bytes(head[start : start + nbytes], "little")

    payload_nbytes, map_nbytes, payload_offset = field(32, 8), field(40, 4), field(44, 4)
    unit = 4096 if payload_nbytes >= 65_536 else 64
    end = offset + payload_offset + payload_nbytes
    if map_nbytes > 4_194_304 or payload_offset != -(-(64 + map_nbytes) // unit) * unit:
        return None
    if end > len(content):
        return None
    values = content[offset + 64 : offset + 64 + map_nbytes]
    if xxhash.xxh3_64_intdigest(head[:56] + values) != field(56, 8):
        return None
    payload = content[offset + payload_offset : end]
    return Entry(
        field(8, 8),
        field(16, 8),
        field(24, 8),
        values,
        payload,
        xxhash.xxh3_64_intdigest(payload) == field(48, 8),
        -(-end // BLOCK) * BLOCK,
    )


def read(
    folder: Path, model: str, layout: str, incarnation: str, first: int
) -> list[tuple[int, dict[str, Any], bytes]]:
    """All records from `first` on; `Refused` if there is a bad middle, or anything foreign."""
    files = []
    for path in folder.iterdir():
        if match := re.fullmatch(r"(\d{8,})-(\d+)\.segment", path.name):
            if path.is_symlink() or not path.is_file():
                raise Refused(path)
            files.append((int(match[1]), int(match[2]), path.read_bytes()))
    files.sort()

    ours = []
    for index, (_, named, content) in enumerate(files):
        is_needed = all(later > first for _, later, _ in files[index + 1 :])
        try:
            begin = entry_at(content, 0, b"STWLSEG1")
            if begin is None or not begin.is_whole:
                raise Refused("first entry")
            says = msgpack.unpackb(begin.values)
            if (says["format"], says["format_version"]) != ("stepwell-journal", 1):
                raise Refused("format")
            if not begin.number == named == says["first_number"] or begin.salt != says["salt"]:
                raise Refused("first number or salt")
            if says["model"] != model:
                raise Refused("model")
            if says["incarnation"] == incarnation and says["layout"] != layout:
                raise Refused("layout")
        except Refused:
            if is_needed:
                raise
            continue
        if says["incarnation"] == incarnation:
            ours.append((named, begin, content))

    found: list[tuple[int, dict[str, Any], bytes]] = []
    wanted = first
    for index, (named, begin, content) in enumerate(ours):
        void_from = min((later for later, _, _ in ours[index + 1 :]), default=1 << 65)
        heads = [
            (offset, entry)
            for offset in range(0, len(content), BLOCK)
            if (entry := entry_at(content, offset, b"STWLREC1")) and entry.salt == begin.salt
        ]
        if void_from <= wanted:
            continue
        if named > wanted:
            raise Refused(f"record {wanted}")
        at = dict(heads)
        offset = begin.end
        if named < wanted:  # go to the record that is wanted, by the heads before it
            offset = next((place for place, entry in heads if entry.number == wanted), len(content))
        while wanted < void_from and (entry := at.get(offset)):
            if entry.number != wanted or not entry.is_whole:
                break
            found.append((wanted, msgpack.unpackb(entry.values), entry.payload))
            wanted, offset = wanted + 1, entry.end
        if wanted >= void_from:
            continue
        claims = [entry.durable for place, entry in heads if place >= offset]
        claims += [later.durable for _, later, _ in ours[index + 1 :]]
        if any(claim > wanted for claim in claims):
            raise Refused(f"record {wanted}")
        break
    return found
