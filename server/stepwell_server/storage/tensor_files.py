"""Safetensors files as streams: written and read piece by piece, every tensor hashed on its way.

    8 bytes, little-endian: the length of the header
    the header: JSON, name -> {"dtype", "shape", "data_offsets"}, padded with spaces
    the tensors, end to end

The format is that of the safetensors library, whose `load_file` opens what is written here. It is
read here without it, so that a model is not in memory twice, and every number of a header, which
may come from a stranger, is held against what is expected before anything is allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash
from stepwell_core.layout import Array, byte_view

from stepwell_server.storage.stores.base import DraftFile

MAX_HEADER_BYTES = 100 << 20
"""The limit of the safetensors library."""

PIECE_BYTES = 4 << 20

_DTYPES = {"float32": "F32", "float64": "F64"}

Note = Callable[[int], None]
"""Called with how many more bytes are done."""


@dataclass(frozen=True)
class Place:
    """A tensor in a file.

    Attributes:
        shape: Of the tensor.
        dtype: "float32" or "float64".
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * (4 if self.dtype == "float32" else 8)


def header_of(places: Mapping[str, Place], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file with these tensors, in this order."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, place in places.items():
        stop = start + place.nbytes
        entries[name] = {
            "dtype": _DTYPES[place.dtype],
            "shape": list(place.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    file: DraftFile, tensors: Mapping[str, Array], metadata: Mapping[str, str], note: Note
) -> tuple[int, dict[str, str]]:
    """Write a file; returns its bytes and the xxh3_128 of each tensor.

    Args:
        file: To be written.
        tensors: Contiguous, only read.
        metadata: For the header.
        note: Of progress.
    """
    places = {name: Place(array.shape, array.dtype.name) for name, array in tensors.items()}
    header = header_of(places, metadata)
    file.write(header)
    nbytes, hashes = len(header), {}
    for name, array in tensors.items():
        hashed = xxhash.xxh3_128()
        for piece in _pieces(byte_view(array)):
            hashed.update(piece)
            file.write(piece)
            note(len(piece))
        hashes[name], nbytes = hashed.hexdigest(), nbytes + array.nbytes
    return nbytes, hashes


class TensorFile:
    """A file that is being read, from its first byte to its last.

    Args:
        pieces: Its bytes.
        nbytes: How many there are.
        expected: The tensors that it must have, and no others.

    Raises:
        ValueError: It is not such a file; says why.
    """

    def __init__(
        self, pieces: Iterator[memoryview], nbytes: int, expected: Mapping[str, Place]
    ) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        length = int.from_bytes(self._take(8), "little")
        if length > min(MAX_HEADER_BYTES, nbytes - 8):
            raise ValueError(f"a header of {length} bytes in a file of {nbytes}")
        text = self._take(length)
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("its header is not JSON") from None
        self._header_nbytes = 8 + length
        self._order = _checked(entries, nbytes - self._header_nbytes, expected)
        self._expected = expected

    def read(self, target: Callable[[str], memoryview | None], note: Note) -> dict[str, str]:
        """Read all tensors; returns the xxh3_128 of each.

        Args:
            target: Where the bytes of a tensor go; None throws them away.
            note: Of progress; counts the header too, so that the whole file is noted.

        Raises:
            ValueError: The file is shorter or longer than it says.
        """
        note(self._header_nbytes)
        hashes = {}
        for name in self._order:
            hashed, view, start = xxhash.xxh3_128(), target(name), 0
            for piece in self._next(self._expected[name].nbytes):
                hashed.update(piece)
                if view is not None:
                    view[start : start + len(piece)] = piece
                start += len(piece)
                note(len(piece))
            hashes[name] = hashed.hexdigest()
        if self._rest or next(self._pieces, None) is not None:
            raise ValueError("there is more in it than it says")
        return hashes

    def _take(self, nbytes: int) -> bytes:
        # Copied one by one: `join` looks at none before it has all, and the first is overwritten.
        return b"".join(map(bytes, self._next(nbytes)))

    def _next(self, nbytes: int) -> Iterator[memoryview]:
        """Yield the next bytes; each piece is good until the next is asked for."""
        while nbytes:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    raise ValueError("it is shorter than it says")
                self._rest = piece
            piece, self._rest = self._rest[:nbytes], self._rest[nbytes:]
            nbytes -= len(piece)
            yield piece


def _checked(entries: object, nbytes: int, expected: Mapping[str, Place]) -> list[str]:
    """Return the names of a header's tensors, in the order of their bytes."""
    if not isinstance(entries, dict):
        raise ValueError("its header is not a map")
    entries.pop("__metadata__", None)
    if entries.keys() != expected.keys():
        missing = sorted(expected.keys() - entries.keys())[:3]
        unknown = [name[:80] for name in sorted(entries.keys() - expected.keys())[:3]]
        raise ValueError(f"it has other tensors: missing {missing}, unknown {unknown}")
    for name, place in expected.items():
        said = entries[name]
        wanted = {"dtype": _DTYPES[place.dtype], "shape": list(place.shape)}
        is_right = isinstance(said, dict) and {k: said.get(k) for k in wanted} == wanted
        if not is_right or not _is_range(said.get("data_offsets"), place.nbytes):
            raise ValueError(f"tensor {name!r} is not {place.dtype} of shape {place.shape}")
    order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    stop = 0
    for name in order:
        if entries[name]["data_offsets"][0] != stop:
            raise ValueError(f"tensor {name!r} does not begin where the one before it ends")
        stop = entries[name]["data_offsets"][1]
    if stop != nbytes:
        raise ValueError(f"its tensors have {stop} bytes, and behind its header are {nbytes}")
    return order


def _is_range(value: object, nbytes: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(number) is int and number >= 0 for number in value)
        and value[1] - value[0] == nbytes
    )


def _pieces(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]
