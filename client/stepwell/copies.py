"""Copies between arrays and memory that is shared; large ones by two threads at once.

One thread copies memory with small pages at two thirds of the rate that the machine has.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from stepwell_core.layout import Array

PIECE_BYTES = 2 << 20
"""How much a thread copies before it looks for more."""

LEAST_BYTES_FOR_TWO = 8 << 20
"""To start a thread takes as long as to copy 1 MiB."""


def copy(sources: Sequence[memoryview], targets: Sequence[Array], region: memoryview) -> None:
    """Copy each source to its target, unless it lies there already.

    Args:
        sources: Bytes; those that lie elsewhere in the region are read before it is written to.
        targets: Arrays of bytes in the region, each as long as its source.
        region: Where the targets lie.
    """
    whole = as_bytes(region)
    moves = []
    for source, target in zip(map(as_bytes, sources), targets, strict=True):
        if not np.may_share_memory(source, whole):  # by their bounds, so of bytes it is exact
            moves.append((source, target))
        elif _address(source) != _address(target):
            moves.append((source.copy(), target))
    _move(moves)


def copy_arrays(moves: Iterable[tuple[Array, Array]]) -> None:
    """Copy each first array to the second, of the same shape; their dtypes may differ."""
    plain = []
    for source, target in moves:
        is_same = source.dtype == target.dtype and source.shape == target.shape
        if is_same and source.flags.c_contiguous and target.flags.c_contiguous:
            plain.append((as_bytes(source.reshape(-1)), as_bytes(target.reshape(-1))))
        else:
            np.copyto(target, source, casting="unsafe")
    _move(plain)


def _move(moves: Iterable[tuple[Array, Array]]) -> None:
    """Copy each first array of bytes to the second."""
    pieces = deque(
        (source[start : start + PIECE_BYTES], target[start : start + PIECE_BYTES])
        for source, target in moves
        for start in range(0, len(source), PIECE_BYTES)
    )
    nbytes = sum(len(source) for source, _ in pieces)
    if nbytes < LEAST_BYTES_FOR_TWO or os.cpu_count() == 1:
        _take_from(pieces)
        return
    second = threading.Thread(target=_take_from, args=(pieces,), name="stepwell-copy")
    second.start()
    try:
        _take_from(pieces)
    finally:
        pieces.clear()  # if this was interrupted nothing is written any more when it is over
        second.join()


def _take_from(pieces: deque[tuple[Array, Array]]) -> None:
    while True:
        try:
            source, target = pieces.popleft()
        except IndexError:
            return
        np.copyto(target, source)


def fill(
    views: Sequence[memoryview], sources: Sequence[memoryview], note: Callable[[int], object]
) -> None:
    """Fill views one after the other with the bytes of all sources.

    Args:
        views: Together as long as the sources.
        sources: Bytes.
        note: Called after each view with how many bytes are still missing.
    """
    missing = sum(map(len, views))
    source, rest = memoryview(b""), list(sources)
    for view in views:
        while view:
            source = source or rest.pop(0)
            count = min(len(view), len(source))
            _move([(as_bytes(source[:count]), as_bytes(view[:count]))])
            view, source = view[count:], source[count:]
            missing -= count
        note(missing)


def as_bytes(view: memoryview | Array) -> Array:
    """Return the bytes of something contiguous, as an array of uint8; no copy."""
    return np.asarray(view).view(np.uint8)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
