"""Tests of `stepwell.destinations`: where each byte of a payload goes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from stepwell.destinations import CallersArrays, NewArrays, Pieces, seen_as
from stepwell.errors import DtypeMismatch, InvalidArgument, LayoutMismatch, ShapeMismatch
from stepwell.pull_buffers import PullBuffers
from stepwell_core.layout import Layout, byte_views

TENSORS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "d": np.arange(5, dtype=np.float64),
    "empty": np.zeros((0, 3), np.float32),
    "s": np.float32(7).reshape(()),
}
LAYOUT = Layout.of(TENSORS)
PAYLOAD = b"".join(map(bytes, byte_views(LAYOUT.flatten(TENSORS))))


def fill(destination, selection=LAYOUT, payload=PAYLOAD, step=1 << 30):
    """Fill a destination as a transport does, `step` bytes at a time; return its tensors."""
    missing = len(payload)
    for view in destination.begin(selection):
        while view:
            count = min(step, len(view))
            view[:count] = payload[len(payload) - missing :][:count]
            view, missing = view[count:], missing - count
            destination.note(missing)
    assert missing == 0
    return destination.tensors()


def assert_same(received, expected):
    """Compare to the bit."""
    assert list(received) == list(expected)
    for name, array in expected.items():
        assert received[name].dtype == array.dtype
        assert received[name].shape == array.shape
        assert received[name].tobytes() == array.tobytes()


def out_like(tensors):
    """Return arrays that `tensors` can be written to."""
    return {name: np.full_like(array, -1) for name, array in tensors.items()}


# New arrays


@pytest.mark.parametrize("step", [1, 7, 1 << 30])
def test_new_arrays_have_the_tensors_in_their_order(step):
    """In shapes and dtypes; without buffers nothing is used again."""
    destination = NewArrays()

    first, second = fill(destination, step=step), fill(destination)

    assert_same(first, TENSORS)
    assert not np.shares_memory(first["w"], second["w"])


def test_new_arrays_of_a_whole_model_come_from_the_buffers():
    """A part of it does not: it would take the place of the whole."""
    buffers = PullBuffers()

    places = {fill(NewArrays(buffers=buffers, whole=LAYOUT))["w"].ctypes.data for _ in range(3)}
    part = LAYOUT.select(["d"])
    assert_same(
        fill(NewArrays(buffers=buffers, whole=LAYOUT), part, TENSORS["d"].tobytes()),
        {"d": TENSORS["d"]},
    )

    assert len(places) == 1
    assert len(buffers._kept) == 1


def test_new_arrays_of_a_repeated_call_use_one_buffer():
    """The first attempt broke in the middle; its memory is free for the second."""
    buffers = PullBuffers()
    destination = NewArrays(buffers=buffers, whole=LAYOUT)

    for _ in range(3):
        destination.begin(LAYOUT)

    assert len(buffers._kept) == 1


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_width_arrays_are_of_that_dtype(name):
    """bfloat16 is that of ml_dtypes."""
    dtype = np.dtype(name)
    halves = {key: array.astype(dtype) for key, array in TENSORS.items()}
    payload = b"".join(halves[key].tobytes() for key in LAYOUT.segments)

    assert_same(fill(NewArrays(name), payload=payload), halves)


def test_bfloat16_is_its_bits_where_ml_dtypes_is_missing(monkeypatch):
    """uint16, which a user can still hand to another library."""
    bits = np.arange(3, dtype=np.uint16)
    assert seen_as("bfloat16", bits).dtype == ml_dtypes.bfloat16

    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)

    assert seen_as("bfloat16", bits) is bits


# The caller's arrays


def test_the_callers_arrays_are_written_to():
    """They are what comes back, in the model's order."""
    out = out_like(dict(reversed(TENSORS.items())))

    received = fill(CallersArrays(LAYOUT, out), step=5)

    assert_same(received, TENSORS)
    assert all(received[name] is out[name] for name in out)


@pytest.mark.parametrize("kind", ["float16", ml_dtypes.bfloat16, "uint16"])
def test_the_callers_arrays_may_be_of_half_width(kind):
    """bfloat16, or its bits as uint16."""
    name = "float16" if kind == "float16" else "bfloat16"
    halves = {key: array.astype(name) for key, array in TENSORS.items()}
    payload = b"".join(halves[key].tobytes() for key in LAYOUT.segments)
    out = {key: np.zeros(array.shape, kind) for key, array in TENSORS.items()}

    fill(CallersArrays(LAYOUT, out, name), payload=payload)

    assert {key: array.tobytes() for key, array in out.items()} == {
        key: array.tobytes() for key, array in halves.items()
    }


def read_only(array):
    """Return a copy that cannot be written to."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"w": np.zeros((4, 3), "f4")},
            ShapeMismatch,
            r"'w' has shape \(3, 4\). Received in `out`",
        ),
        ({"w": np.zeros((3, 4), "f8")}, DtypeMismatch, "'w' comes as float32. Received .* float64"),
        ({"w": np.zeros((3, 4), ">f4")}, DtypeMismatch, "Received in `out`: >f4"),
        ({"w": np.zeros((4, 3), "f4").T}, InvalidArgument, "in C order"),
        ({"w": read_only(TENSORS["w"])}, InvalidArgument, "writeable"),
        ({"w": [[1.0]]}, InvalidArgument, "Received: list for 'w'"),
        ({"x": np.zeros(1)}, LayoutMismatch, r"Missing: \[\]; unknown: \[.*x"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_anything_is_asked(change, error, words):
    """The sentence names the tensor and what it must be."""
    with pytest.raises(error, match=words):
        CallersArrays(LAYOUT, out_like(TENSORS) | change)


@pytest.mark.parametrize(
    ("out", "error"), [([], InvalidArgument), ({"w": TENSORS["w"]}, LayoutMismatch)]
)
def test_out_has_all_names_and_is_a_mapping(out, error):
    """A tensor without a place would be lost."""
    with pytest.raises(error):
        CallersArrays(LAYOUT, out)


def test_an_answer_of_other_tensors_does_not_go_into_the_callers_arrays():
    """It would be written to the wrong places."""
    destination = CallersArrays(LAYOUT, out_like(TENSORS))

    with pytest.raises(LayoutMismatch):
        destination.begin(LAYOUT.select(["w"]))


# Pieces

BIG = {
    "a": np.arange(20_000, dtype=np.float32),
    "tiny": np.float32([1, 2, 3]),
    "b": np.arange(30_000, dtype=np.float64).reshape(300, 100),
    "c": np.arange(40_000, dtype=np.float32).reshape(200, 200),
}
BIG_LAYOUT = Layout.of(BIG)
BIG_PAYLOAD = b"".join(map(bytes, byte_views(BIG_LAYOUT.flatten(BIG))))
WINDOW = 1 << 16


@pytest.mark.parametrize("step", [1000, 65_521, 1 << 30])
def test_pieces_come_in_order_and_are_everything(step):
    """Each lies in one tensor and one window; float32 tensors come first, as they travel."""
    seen = []
    destination = Pieces(
        lambda *piece: seen.append((*piece[:2], piece[2].copy())), window_bytes=WINDOW
    )

    tensors = fill(destination, BIG_LAYOUT, BIG_PAYLOAD, step)

    assert tensors == {}
    assert list(dict.fromkeys(name for name, _, _ in seen)) == ["a", "tiny", "c", "b"]
    for name, array in BIG.items():
        pieces = [(index, piece) for other, index, piece in seen if other == name]
        assert [index for index, _ in pieces] == list(
            np.cumsum([0, *(piece.size for _, piece in pieces)])[:-1]
        )
        whole = np.concatenate([piece for _, piece in pieces])
        assert whole.dtype == array.dtype
        assert whole.tobytes() == array.tobytes()
    assert max(piece.nbytes for _, _, piece in seen) <= WINDOW
    assert len(seen) > 8


def test_the_memory_of_pieces_is_used_again():
    """One window for each dtype, whatever the size of the model."""
    places = set()

    def into(name, index, elements):
        base = elements if elements.base is None else elements.base
        places.add(base.ctypes.data)

    fill(Pieces(into, window_bytes=WINDOW), BIG_LAYOUT, BIG_PAYLOAD)

    assert len(places) == 2


def test_pieces_of_half_width_are_of_that_dtype():
    """And each holds twice as many elements."""
    halves = {key: array.astype(ml_dtypes.bfloat16) for key, array in BIG.items()}
    payload = b"".join(halves[key].tobytes() for key in BIG_LAYOUT.segments)
    seen = []

    destination = Pieces(
        lambda *piece: seen.append((piece[0], piece[2].copy())), "bfloat16", WINDOW
    )
    fill(destination, BIG_LAYOUT, payload)

    assert {piece.dtype for _, piece in seen} == {np.dtype(ml_dtypes.bfloat16)}
    assert b"".join(piece.tobytes() for _, piece in seen) == payload


def test_a_call_is_not_repeated_once_a_piece_was_delivered():
    """Before the first one it may be; and not after a callback that raised."""

    def into(name, index, elements):
        raise ZeroDivisionError

    destination = Pieces(into, window_bytes=WINDOW)
    destination.begin(BIG_LAYOUT)
    destination.note(len(BIG_PAYLOAD) - 100)
    before = destination.can_begin
    with pytest.raises(ZeroDivisionError):
        destination.note(len(BIG_PAYLOAD) - WINDOW)

    assert (before, destination.can_begin) == (True, False)


async def a_coroutine(name, index, elements):
    """Nobody would await it."""


@pytest.mark.parametrize("into", [{}, a_coroutine])
def test_into_is_something_that_can_be_called(into):
    """The sentence says with what, and that a coroutine would never run."""
    with pytest.raises(InvalidArgument, match="a plain function of a name, an index and an array"):
        Pieces(into)
