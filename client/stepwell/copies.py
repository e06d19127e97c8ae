"""Copies between arrays and memory that is shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from stepwell_core.layout import Array


def copy(sources: Sequence[memoryview], targets: Sequence[Array], region: memoryview) -> None:
    """Copy each source to its target, unless it lies there already.

    Args:
        sources: Bytes; those that lie elsewhere in the region are read before it is written to.
        targets: Arrays of bytes in the region, each as long as its source.
        region: Where the targets lie.
    """
    begin = _address(as_bytes(region))
    arrays = [as_bytes(source) for source in sources]
    moves = [
        (source, target)
        for source, target in zip(arrays, targets, strict=True)
        if _address(source) != _address(target)
    ]
    kept = [
        (source.copy() if begin <= _address(source) < begin + len(region) else source, target)
        for source, target in moves
    ]
    for source, target in kept:
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
            np.copyto(as_bytes(view[:count]), as_bytes(source[:count]))
            view, source = view[count:], source[count:]
            missing -= count
        note(missing)


def as_bytes(view: memoryview | Array) -> Array:
    """Return the bytes of something contiguous, as an array of uint8; no copy."""
    return np.asarray(view).view(np.uint8)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
