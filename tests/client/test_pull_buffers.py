"""Tests of `stepwell.pull_buffers`: memory is used again, and never while somebody looks at it."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from stepwell.pull_buffers import MAX_KEPT, PullBuffers
from stepwell_core.layout import Layout

LAYOUT = Layout.of({"a": np.zeros((2, 3), "f4"), "b": np.zeros(5, "f8"), "c": np.zeros(4, "f4")})


def address(arenas):
    """Return where each arena lies."""
    return {dtype: array.ctypes.data for dtype, array in arenas.items()}


@pytest.fixture
def buffers():
    """Return buffers that have one set of arenas, which nobody looks at."""
    buffers = PullBuffers()
    buffers.take(LAYOUT)
    return buffers


def test_arenas_that_nobody_looks_at_are_used_again(buffers):
    """The same memory, again and again."""
    first = address(buffers.take(LAYOUT))

    assert all(address(buffers.take(LAYOUT)) == first for _ in range(5))


HOLDERS = {
    "arenas": lambda arenas: arenas,
    "one arena": lambda arenas: arenas["float64"],
    "tensor": lambda arenas: LAYOUT.views(arenas)["c"],
    "view of a view": lambda arenas: LAYOUT.views(arenas)["a"].T[1:, ::2],
    "another dtype": lambda arenas: LAYOUT.views(arenas)["a"].view(np.uint16),
    "element as an array": lambda arenas: arenas["float32"][3:4].reshape(()),
    "memoryview": lambda arenas: memoryview(LAYOUT.views(arenas)["a"]),
    "from a memoryview": lambda arenas: np.frombuffer(memoryview(arenas["float64"]), "u1"),
    "iterator": lambda arenas: iter(LAYOUT.views(arenas)["a"]),
    "flat": lambda arenas: arenas["float32"].flat,
    "broadcast": lambda arenas: np.broadcast_to(LAYOUT.views(arenas)["c"], (3, 4)),
    "as strided": lambda arenas: np.lib.stride_tricks.sliding_window_view(arenas["float32"], 2),
    "subclass": lambda arenas: arenas["float32"].view(np.recarray),
    "ctypes": lambda arenas: (ctypes.c_char * 8).from_buffer(arenas["float32"]),
    "dlpack": lambda arenas: np.from_dlpack(LAYOUT.views(arenas)["a"]),
    "capsule": lambda arenas: arenas["float32"].__dlpack__(),
    "closure": lambda arenas: lambda: arenas,
    "weak and strong": lambda arenas: (weakref.ref(arenas["float32"]), arenas["float32"]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_arenas_that_somebody_looks_at_are_left_alone(buffers, holder):
    """However a view was made, and wherever it is kept."""
    arenas = buffers.take(LAYOUT)
    taken = address(arenas)

    held = HOLDERS[holder](arenas)
    del arenas
    others = [address(buffers.take(LAYOUT)) for _ in range(5)]

    assert all(set(other.values()).isdisjoint(taken.values()) for other in others)
    del held


@pytest.mark.parametrize("holder", HOLDERS)
def test_arenas_are_free_again_when_the_last_view_is_gone(buffers, holder):
    """So that a loop of pulls does not run out of them."""
    arenas = buffers.take(LAYOUT)
    taken = address(arenas)
    held = HOLDERS[holder](arenas)
    del arenas

    del held
    gc.collect()

    assert address(buffers.take(LAYOUT)) == taken


def test_a_copy_is_not_a_view(buffers):
    """What was derived by computing has memory of its own."""
    arenas = buffers.take(LAYOUT)
    taken = address(arenas)

    copies = [arenas["float32"] + 1, arenas["float32"][[0, 1]], arenas["float32"].tolist()]
    del arenas

    assert address(buffers.take(LAYOUT)) == taken
    assert len(copies) == 3


def test_a_loop_that_holds_the_old_parameters_needs_two():
    """`parameters = worker.pull()`: the old ones are there until the new ones are."""
    buffers, seen, held = PullBuffers(), set(), None

    for _ in range(9):
        held = buffers.take(LAYOUT)
        seen.add(held["float32"].ctypes.data)

    assert len(seen) == MAX_KEPT == 2


def test_no_more_are_kept_than_two():
    """Who holds many pulls holds their memory; the buffers do not, beyond two."""
    buffers = PullBuffers()
    held = [buffers.take(LAYOUT) for _ in range(5)]
    ends = [weakref.ref(arenas["float32"]) for arenas in held]

    held.clear()
    gc.collect()

    assert sum(end() is not None for end in ends) == 2


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(LAYOUT, "float16"), (LAYOUT.select(["a"]), "native"), (LAYOUT.select(["a", "c"]), "native")],
)
def test_arenas_of_another_payload_do_not_fit(buffers, layout, dtype):
    """Another dtype, other tensors: other memory, of the right sizes."""
    arenas = buffers.take(layout, dtype)

    expected = layout.new_payload(dtype)
    assert arenas.keys() == expected.keys()
    assert all(arenas[key].dtype == expected[key].dtype for key in expected)
    assert all(arenas[key].shape == expected[key].shape for key in expected)


def test_clearing_frees_what_nobody_looks_at(buffers):
    """A session that is closed keeps no memory."""
    end = weakref.ref(buffers.take(LAYOUT)["float32"])

    buffers.clear()

    assert end() is None


def test_threads_never_get_the_same_arenas():
    """Each writes its own number all over, and finds nothing else there."""
    buffers, together = PullBuffers(), threading.Barrier(4)

    def pull(number):
        together.wait(30)
        for _ in range(2000):
            arenas = buffers.take(LAYOUT)
            views = LAYOUT.views(arenas)
            del arenas
            for view in views.values():
                view[...] = number
            assert all((view == number).all() for view in views.values())
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(pull, range(4)))
