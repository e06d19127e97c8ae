"""Arenas in one buffer: where they begin, and that both sides see the same elements."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell_core.layout import PAYLOAD_DTYPES, Layout, Tensor, byte_views, payload_dtype
from stepwell_core.placement import ALIGNMENT, extent, place

LAYOUT = Layout([Tensor("a", (3,), "float32"), Tensor("b", (2, 2), "float64")])


@pytest.mark.parametrize("dtype", PAYLOAD_DTYPES)
def test_arenas_lie_aligned_and_apart_inside_the_extent(dtype):
    """Two arenas share no byte, each begins at a line of the cache, and all fit."""
    buffer = bytearray(extent(LAYOUT, dtype))

    arenas = place(LAYOUT, memoryview(buffer), dtype)
    for number, view in enumerate(byte_views(arenas), 1):
        view[:] = bytes([number]) * len(view)

    start = np.frombuffer(buffer, np.uint8).ctypes.data
    offsets = [array.ctypes.data - start for array in arenas.values()]
    assert offsets[0] == 0
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    for (arena_dtype, array), number in zip(arenas.items(), (1, 2), strict=True):
        assert array.dtype == payload_dtype(dtype, arena_dtype)
        assert array.size == LAYOUT.sizes[arena_dtype]
        assert set(array.tobytes()) == {number}


def test_arenas_are_views_and_writable_as_the_buffer_is():
    """What one side writes the other reads, and what is read only stays so."""
    buffer = bytearray(extent(LAYOUT))
    mine, theirs = place(LAYOUT, memoryview(buffer)), place(LAYOUT, memoryview(buffer))

    mine["float64"][3] = 5.0

    assert theirs["float64"][3] == 5.0
    assert not place(LAYOUT, memoryview(bytes(buffer)))["float32"].flags.writeable


def test_a_layout_without_elements_still_takes_a_byte():
    """The kernel maps no empty region."""
    layout = Layout([Tensor("a", (0,), "float32")])

    assert extent(layout) == 1
    assert place(layout, memoryview(bytes(1)))["float32"].size == 0
