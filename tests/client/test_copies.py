"""Tests of `stepwell.copies`: from arrays into a region, and from a region into views."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from stepwell.copies import LEAST_BYTES_FOR_TWO, PIECE_BYTES, copy, fill


def new_region(*values):
    """Return the bytes of a region, and as an array."""
    array = np.array(values, np.uint8)
    return memoryview(array), array


def test_sources_are_copied_from_outside():
    """Each to its own target; an empty one to nowhere."""
    region, array = new_region(0, 0, 0, 0)

    copy([memoryview(b"ab"), memoryview(b""), memoryview(b"c")],
         [array[:2], array[2:2], array[3:]], region)  # fmt: skip

    assert bytes(region) == b"ab\0c"


def test_what_lies_in_its_place_is_not_written():
    """A gradient that was written in place is copied nowhere: here it could not be."""
    region, array = new_region(1, 2, 3, 4)
    array.flags.writeable = False

    copy([region[:2], region[2:]], [array[:2], array[2:]], region)

    assert array.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("places", [(2, 0), (1, 0), (1, 3)])
def test_sources_elsewhere_in_the_region_are_read_before_it_is_written(places):
    """Changed places, and places that overlap."""
    region, array = new_region(1, 2, 3, 4, 5)
    sources = [region[start : start + 2] for start in places]
    expected = b"".join(bytes(source) for source in sources)

    copy(sources, [array[:2], array[2:4]], region)

    assert bytes(region[:4]) == expected


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (0, 2, 0, 4, 0), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("source_sizes", [(6,), (4, 2), (0, 1, 5, 0)])
def test_views_are_filled_across_all_borders(sizes, source_sizes):
    """And after each it is said how much is missing."""
    sources, views, missing = [], [bytearray(size) for size in sizes], []
    rest = b"abcdef"
    for size in source_sizes:
        sources.append(memoryview(rest[:size]))
        rest = rest[size:]

    fill([memoryview(view) for view in views], sources, missing.append)

    assert b"".join(views) == b"abcdef"
    assert missing == [6 - sum(sizes[: index + 1]) for index in range(len(sizes))]


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, LEAST_BYTES_FOR_TWO, LEAST_BYTES_FOR_TWO + 1])
def test_two_threads_copy_every_byte_once(size):
    """Whatever the sizes of the arrays are, and the last piece is."""
    random = np.random.default_rng(size)
    sources = [random.integers(0, 256, n, np.uint8) for n in (size, 3, 0, size // 2)]
    region = np.zeros(sum(map(len, sources)), np.uint8)
    targets = np.split(region, np.cumsum([len(source) for source in sources])[:-1])

    copy([memoryview(source) for source in sources], targets, memoryview(region))

    assert region.tobytes() == b"".join(source.tobytes() for source in sources)
    assert not any(thread.name == "stepwell-copy" for thread in threading.enumerate())
