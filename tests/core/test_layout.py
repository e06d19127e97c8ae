"""Layouts: where tensors lie, what a layout is called, and what is no layout."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core.errors import (
    DtypeMismatch,
    InvalidInput,
    InvalidName,
    LayoutMismatch,
    ShapeMismatch,
    UnknownTensor,
)
from stepwell_core.layout import (
    MAX_BYTES,
    MAX_DIMENSIONS,
    MAX_TENSORS,
    PAYLOAD_DTYPES,
    Layout,
    Tensor,
    byte_view,
    byte_views,
    check_array,
    payload_dtype,
)

MIXED = Layout(
    [
        Tensor("kernel", (2, 3), "float32"),
        Tensor("wide", (4,), "float64"),
        Tensor("scale", (), "float32"),
        Tensor("nothing", (3, 0, 2), "float32"),
        Tensor("bias", (3,), "float32"),
        Tensor("offset", (), "float64"),
    ]
)

tensors = st.builds(
    Tensor,
    st.from_regex(r"[a-z]{1,8}(/[a-z:0-9]{1,8})?", fullmatch=True),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.sampled_from(["float32", "float64"]),
)
layouts = st.lists(tensors, min_size=1, max_size=8, unique_by=lambda t: t.name).map(Layout)


def arrays_of(layout: Layout) -> dict[str, np.ndarray]:
    """Return an array for each tensor, all numbers different."""
    arrays, first = {}, 1
    for tensor in layout:
        numbers = np.arange(first, first + tensor.size, dtype=tensor.dtype)
        arrays[tensor.name] = numbers.reshape(tensor.shape)
        first += tensor.size
    return arrays


# Places


def test_tensors_lie_end_to_end_in_one_arena_a_dtype() -> None:
    """Segments follow each other in the tensors' order, float32 and float64 apart."""
    # Act
    places = {name: (s.tensor.dtype, s.start, s.stop) for name, s in MIXED.segments.items()}

    # Assert
    assert places == {
        "kernel": ("float32", 0, 6),
        "scale": ("float32", 6, 7),
        "nothing": ("float32", 7, 7),
        "bias": ("float32", 7, 10),
        "wide": ("float64", 0, 4),
        "offset": ("float64", 4, 5),
    }
    assert MIXED.sizes == {"float32": 10, "float64": 5}
    assert (MIXED.size, MIXED.nbytes) == (15, 80)


def test_a_dtype_without_tensors_has_no_arena() -> None:
    """A model of float32 tensors alone has one arena; one of empty tensors has an empty one."""
    # Act
    one = Layout([Tensor("a", (2,), "float32")])
    empty = Layout([Tensor("a", (2,), "float32"), Tensor("b", (0,), "float64")])

    # Assert
    assert one.new_arenas().keys() == {"float32"}
    assert {dtype: array.size for dtype, array in empty.new_arenas().items()} == {
        "float32": 2,
        "float64": 0,
    }


@given(layout=layouts)
def test_what_is_flattened_is_seen_again(layout: Layout) -> None:
    """Views of the arenas are the arrays that went in, scalars and empty axes included."""
    # Arrange
    arrays = arrays_of(layout)

    # Act
    views = layout.views(layout.flatten(arrays))

    # Assert
    assert list(views) == list(arrays)
    for name, view in views.items():
        assert view.dtype == arrays[name].dtype
        assert view.shape == arrays[name].shape
        assert np.array_equal(view, arrays[name])


def test_flattening_copies_and_viewing_does_not() -> None:
    """Arenas own their numbers; a view writes into them."""
    # Arrange
    arrays = arrays_of(MIXED)
    arenas = MIXED.flatten(arrays)

    # Act
    MIXED.views(arenas)["scale"][...] = 100
    arrays["kernel"][...] = -1

    # Assert
    assert arenas["float32"].tolist() == [1, 2, 3, 4, 5, 6, 100, 12, 13, 14]


def test_arrays_of_any_order_and_byte_order_are_flattened() -> None:
    """Strides and byte order are the caller's; the arenas are C order and little-endian."""
    # Arrange
    layout = Layout([Tensor("kernel", (2, 3), "float32")])
    kernel = np.arange(6, dtype=">f4").reshape(3, 2).T

    # Act
    arenas = layout.flatten({"kernel": kernel})

    # Assert
    assert arenas["float32"].tolist() == [0, 2, 4, 1, 3, 5]
    assert arenas["float32"].dtype.str == "<f4"


@pytest.mark.parametrize("value", [0.0, 0.1, None])
def test_new_arenas_have_the_layouts_sizes(value: float | None) -> None:
    """Filled with a value, or left as they are, each in its own dtype."""
    # Act
    arenas = MIXED.new_arenas(value)

    # Assert
    assert {dtype: (array.dtype.name, array.size) for dtype, array in arenas.items()} == {
        "float32": ("float32", 10),
        "float64": ("float64", 5),
    }
    if value is not None:
        assert all((array == array.dtype.type(value)).all() for array in arenas.values())


def test_bytes_travel_float32_first() -> None:
    """`byte_views` are the arenas' own bytes, in the order of the wire."""
    # Arrange
    arenas = MIXED.flatten(arrays_of(MIXED))
    backwards = dict(reversed(arenas.items()))

    # Act
    views = byte_views(backwards)

    # Assert
    assert [view.nbytes for view in views] == [40, 40]
    assert bytes(views[0]) == arenas["float32"].tobytes()
    assert not views[0].readonly


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.float32), np.zeros((), np.float64)])
def test_the_bytes_of_an_array_are_a_view(array):
    """Of any shape, a scalar's too; what is written there is in the array."""
    expected = bytes(range(1, array.nbytes + 1))

    byte_view(array)[:] = expected

    assert array.tobytes() == expected


def test_the_bytes_of_an_empty_array_are_none():
    """An empty tensor is still a tensor."""
    assert byte_view(np.zeros((0, 3))).nbytes == 0


# Payloads


@pytest.mark.parametrize(
    ("dtype", "nbytes"),
    [("native", 80), ("float16", 30), ("bfloat16", 30), ("float32", 60), ("float64", 120)],
)
def test_a_payload_has_the_bytes_of_its_dtype(dtype: str, nbytes: int) -> None:
    """15 elements, of which 5 are float64, in each format; empty tensors add nothing."""
    # Act
    payload = MIXED.new_payload(dtype)

    # Assert
    assert MIXED.payload_nbytes(dtype) == nbytes
    assert sum(array.nbytes for array in payload.values()) == nbytes
    assert all(array.flags.aligned and array.dtype.byteorder in "=<" for array in payload.values())


@pytest.mark.parametrize("dtype", ["float8", "int32", "", None, 7, ["float32"], "NATIVE"])
def test_a_payload_of_another_dtype_is_refused(dtype: Any) -> None:
    """The formats are a closed list, named in the error."""
    # Act
    with pytest.raises(DtypeMismatch) as refusal:
        payload_dtype(dtype, "float32")

    # Assert
    assert ", ".join(PAYLOAD_DTYPES) in refusal.value.message


# JSON and hash


@given(layout=layouts)
def test_a_layout_survives_json(layout: Layout) -> None:
    """What `to_json` gives makes an equal layout with the same hash."""
    # Act
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))

    # Assert
    assert again == layout
    assert again.hash == layout.hash
    assert hash(again) == hash(layout)


@given(one=layouts, other=layouts)
def test_layouts_are_equal_when_their_hashes_are(one: Layout, other: Layout) -> None:
    """The hash tells layouts apart."""
    # Act
    is_equal = one == other

    # Assert
    assert is_equal is (one.hash == other.hash)


def test_the_hash_is_the_same_for_ever() -> None:
    """It stands in ETags, checkpoints and headers of clients of other versions."""
    # Act
    actual = MIXED.hash

    # Assert
    assert actual == "9fe125eb62386efa55982754ac35708a"


@pytest.mark.parametrize(
    "tensors",
    [
        [Tensor("b", (2,), "float32"), Tensor("a", (2,), "float32")],
        [Tensor("a", (2,), "float32"), Tensor("c", (2,), "float32")],
        [Tensor("a", (2, 1), "float32"), Tensor("b", (2,), "float32")],
        [Tensor("a", (2,), "float64"), Tensor("b", (2,), "float32")],
        [Tensor("a", (2,), "float32")],
    ],
    ids=["order", "name", "shape", "dtype", "count"],
)
def test_the_hash_depends_on(tensors: list[Tensor]) -> None:
    """Order, names, shapes, dtypes and their number all count."""
    # Arrange
    layout = Layout([Tensor("a", (2,), "float32"), Tensor("b", (2,), "float32")])

    # Act
    other = Layout(tensors)

    # Assert
    assert other != layout
    assert other.hash != layout.hash


def test_a_dtype_is_float32_unless_it_is_said() -> None:
    """The short form of a tensor has name and shape."""
    # Act
    layout = Layout.from_json([{"name": "a", "shape": []}])

    # Assert
    assert layout.tensors == (Tensor("a", (), "float32"),)


# Selections


def test_a_selection_keeps_the_models_order() -> None:
    """Whatever the order of the names, tensors travel in the model's."""
    # Act
    selection = MIXED.select(["bias", "wide", "kernel"])

    # Assert
    assert selection.names == ("kernel", "wide", "bias")
    assert selection.segments["bias"].start == 6


def test_a_selection_of_everything_is_the_layout_itself() -> None:
    """A full push makes no second layout."""
    # Act
    selection = MIXED.select(reversed(MIXED.names))

    # Assert
    assert selection is MIXED


@pytest.mark.parametrize("name", ["kernal", "", None, 3, ["kernel"], {"kernel": 1}])
def test_a_name_that_the_model_has_not_is_refused(name: Any) -> None:
    """The error says what there is; names of any type come from strangers."""
    # Act
    with pytest.raises(UnknownTensor) as refusal:
        MIXED.select(["kernel", name])

    # Assert
    assert "It has: 'kernel', 'wide'" in refusal.value.message


@pytest.mark.parametrize("names", [[], ["kernel", "kernel"], ["bias"] * 6])
def test_nothing_and_twice_the_same_are_no_selection(names: list[str]) -> None:
    """A selection has at least one tensor, and each once."""
    # Act / Assert
    with pytest.raises(InvalidInput):
        MIXED.select(names)


# Refusals


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel": np.zeros((3, 2), "f4")}, ShapeMismatch, r"shape \(2, 3\). Received: \(3, 2\)"),
        ({"scale": np.zeros(1, "f4")}, ShapeMismatch, r"shape \(\). Received: \(1,\)"),
        ({"kernel": np.zeros((2, 3))}, DtypeMismatch, "dtype float32. Received: float64"),
        ({"kernel": np.zeros((2, 3), "i4")}, DtypeMismatch, "dtype float32. Received: int32"),
        ({"extra": np.zeros(1)}, LayoutMismatch, "Missing: none; unknown: 'extra'"),
        ({"bias": None}, LayoutMismatch, "Missing: 'bias'; unknown: none"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: Any, error: Any, message: str) -> None:
    """The error names tensor, shapes and dtypes, and no numbers."""
    # Arrange
    arrays = {**arrays_of(MIXED), **changes}
    arrays = {name: array for name, array in arrays.items() if array is not None}

    # Act / Assert
    with pytest.raises(error, match=message):
        MIXED.flatten(arrays)


def test_a_fitting_array_is_quiet() -> None:
    """`check_array` says nothing about what fits."""
    # Act
    check_array(np.zeros((2, 3), np.float32), MIXED.tensors[0])


BIG = [1 << 45, 1 << 45]
HOSTILE: list[tuple[Any, type[InvalidInput]]] = [
    (None, InvalidInput),
    ({}, InvalidInput),
    ("tensors", InvalidInput),
    ([], InvalidInput),
    ([None], InvalidInput),
    ([[]], InvalidInput),
    ([{"name": "a"}], InvalidInput),
    ([{"shape": [1]}], InvalidInput),
    ([{"name": "a", "shape": [1], "dtpye": "float64"}], InvalidInput),
    ([{"name": "a", "shape": [1]}] * 2, InvalidInput),
    ([{"name": "", "shape": [1]}], InvalidName),
    ([{"name": ["a"], "shape": [1]}], InvalidName),
    ([{"name": "../a", "shape": [1]}], InvalidName),
    ([{"name": "a", "shape": 3}], ShapeMismatch),
    ([{"name": "a", "shape": "33"}], ShapeMismatch),
    ([{"name": "a", "shape": {"0": 3}}], ShapeMismatch),
    ([{"name": "a", "shape": [True]}], ShapeMismatch),
    ([{"name": "a", "shape": [-1]}], ShapeMismatch),
    ([{"name": "a", "shape": [2.0]}], ShapeMismatch),
    ([{"name": "a", "shape": ["2"]}], ShapeMismatch),
    ([{"name": "a", "shape": [None]}], ShapeMismatch),
    ([{"name": "a", "shape": [[2]]}], ShapeMismatch),
    ([{"name": "a", "shape": [MAX_BYTES]}], ShapeMismatch),
    ([{"name": "a", "shape": [10**4000]}], ShapeMismatch),
    ([{"name": "a", "shape": [1] * (MAX_DIMENSIONS + 1)}], ShapeMismatch),
    ([{"name": "a", "shape": BIG}], ShapeMismatch),
    ([{"name": "a", "shape": [0, *BIG]}], ShapeMismatch),
    ([{"name": "a", "shape": [0] * MAX_DIMENSIONS + [1]}], ShapeMismatch),
    ([{"name": "a", "shape": [MAX_BYTES // 4 + 1]}], InvalidInput),
    ([{"name": f"{i}", "shape": [MAX_BYTES // 8]} for i in range(3)], InvalidInput),
    ([{"name": "a", "shape": [1], "dtype": "float16"}], DtypeMismatch),
    ([{"name": "a", "shape": [1], "dtype": "Float32"}], DtypeMismatch),
    ([{"name": "a", "shape": [1], "dtype": None}], DtypeMismatch),
    ([{"name": "a", "shape": [1], "dtype": ["float32"]}], DtypeMismatch),
]


@pytest.mark.parametrize(("value", "error"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json_is_refused(value: Any, error: type[InvalidInput]) -> None:
    """Whatever a stranger sends is a layout or a typed, short error."""
    # Act
    with pytest.raises(InvalidInput) as refusal:
        Layout.from_json(value)

    # Assert
    assert type(refusal.value) is error
    assert len(refusal.value.message) < 400


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "a", "shape": [1]}] * (MAX_TENSORS + 1),
        [None] * 10**6,
        [{"name": "a", "shape": [1] * 10**6}],
        [{"name": "x" * 10**6, "shape": [1]}],
        [{"name": "a", "shape": [1], "dtype": "x" * 10**6}],
        [{"name": "a", "shape": [1 << 45]}],
    ],
    ids=["tensors", "nothings", "shape", "name", "dtype", "size"],
)
def test_a_refusal_takes_no_memory(value: Any) -> None:
    """Sizes are checked before anything of that size is made."""
    # Arrange
    tracemalloc.start()

    # Act
    try:
        with pytest.raises(InvalidInput) as refusal:
            Layout.from_json(value)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # Assert
    assert peak < 200_000
    assert len(refusal.value.message) < 400


def test_empty_axes_of_any_kind_can_be_viewed() -> None:
    """Every layout that is taken has views, also where NumPy counts the sizes beside a zero."""
    # Arrange
    layout = Layout([Tensor("a", (0, 1 << 23, 1 << 23), "float64"), Tensor("b", (1,), "float64")])

    # Act
    views = layout.views(layout.new_arenas())

    # Assert
    assert views["a"].shape == (0, 1 << 23, 1 << 23)
    assert layout.sizes == {"float64": 1}
