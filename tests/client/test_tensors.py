"""Tests of `stepwell.tensors`: what NumPy can view travels as it is; the rest is told apart."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from stepwell.errors import DtypeMismatch, InvalidArgument, ShapeMismatch
from stepwell.tensors import arrays_of, check_shape, common_dtype, gradients_of, in_travel_order
from stepwell_core.layout import Layout

MIXED = Layout.of({"w": np.zeros(3, np.float32), "d": np.zeros((2, 1)), "s": np.zeros((), "f4")})


class TensorLike:
    """What a torch tensor is to NumPy: something with `__array__`."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_an_array_in_c_order_is_not_copied():
    """The caller's memory is what is sent."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)

    assert arrays_of({"w": array})["w"] is array


def test_a_live_tensor_is_viewed_and_not_copied():
    """A torch tensor on the CPU gives NumPy its own memory."""
    array = np.arange(3, dtype=np.float32)

    assert np.shares_memory(arrays_of({"w": TensorLike(array)})["w"], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(12, dtype=np.float32)[::2],
        np.arange(6, dtype=np.float32)[::-1],
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.broadcast_to(np.float32(2), (2, 3)),
    ],
    ids=["transposed", "strided", "reversed", "fortran", "broadcast"],
)
def test_an_array_in_another_order_is_brought_into_c_order(array):
    """The bytes that travel are those of the array as it reads."""
    layout = Layout.of({"w": array})

    (view,) = in_travel_order(layout, arrays_of({"w": array}))

    assert bytes(view) == array.tobytes()


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_bytes_of_another_machine_are_turned_around(dtype):
    """A big-endian array, as from a file, keeps its numbers; only its name says float32."""
    array = np.array([1.0, 2.5], dtype=dtype)
    layout = Layout.of({"w": array})

    (view,) = in_travel_order(layout, arrays_of({"w": array}))

    assert np.frombuffer(view, dtype.replace(">", "<")).tolist() == [1.0, 2.5]


def test_scalars_and_empty_tensors_keep_their_shapes():
    """A scalar is not a vector of one, and nothing is still a tensor."""
    arrays = arrays_of({"s": np.float32(1), "e": np.zeros((0, 3), "f4"), "f": 2.0})

    assert {name: array.shape for name, array in arrays.items()} == {
        "s": (), "e": (0, 3), "f": ()
    }  # fmt: skip
    assert [bytes(view) for view in in_travel_order(Layout.of(arrays), arrays)] == [
        np.float32(1).tobytes(), b"", np.float64(2).tobytes()
    ]  # fmt: skip


def test_float32_tensors_travel_before_float64_ones():
    """The order of travel is that of the arenas, not of the mapping."""
    arrays = {"s": np.float32([7]).reshape(()), "d": np.ones((2, 1)), "w": np.zeros(3, "f4")}

    views = in_travel_order(MIXED, arrays)

    assert [view.nbytes for view in views] == [12, 4, 16]


def test_none_is_left_out_only_where_it_may_be():
    """A parameter without a gradient is None; a parameter that is None is a mistake."""
    assert gradients_of({"w": None, "d": np.ones(1)})[0].keys() == {"d"}
    with pytest.raises(DtypeMismatch, match="None for 'w'; leave it out"):
        arrays_of({"w": None})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint16", "int16"])
def test_parameters_are_held_in_full_width(dtype):
    """The optimizer works in float32; who wants half of it pulls so."""
    with pytest.raises(DtypeMismatch, match=f"Received: {dtype} for 'w'; convert it to float32"):
        arrays_of({"w": np.zeros(2, np.uint16).view(dtype)})


@pytest.mark.parametrize("values", [[np.zeros(3)], np.zeros(3), None, (("w", 1),)])
def test_arrays_without_names_are_refused(values):
    """The sentence shows the form."""
    with pytest.raises(InvalidArgument, match="Tensors come by name"):
        arrays_of(values)


def dtypes(w, d, s):
    """Return gradients of `MIXED` in these dtypes."""
    return {"w": np.zeros(3, w), "d": np.zeros((2, 1), d), "s": np.zeros((), s)}


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (("f4", "f8", "f4"), "native"),
        (("f8", "f8", "f8"), "float64"),
        (("f4", "f4", "f4"), "float32"),
        (("f2", "f2", "f2"), "float16"),
        ((ml_dtypes.bfloat16,) * 3, "bfloat16"),
    ],
)
def test_gradients_have_their_own_dtypes_or_all_one(received, expected):
    """float64 gradients of a float32 model are sent as float64, not rounded here."""
    assert common_dtype(gradients_of(dtypes(*received))[1], MIXED) == expected


@pytest.mark.parametrize(
    ("received", "name"),
    [
        (("f4", "f8", "f8"), "s"),
        (("f8", "f8", "f4"), "w"),
        (("f2", "f4", "f2"), "w"),
        (("u2", "u2", "u2"), "w"),
    ],
)
def test_mixed_dtypes_are_refused_with_the_tensor_that_is_wrong(received, name):
    """The error has name, expected and received, and no numbers."""
    with pytest.raises(DtypeMismatch, match=r"or all of them one of bfloat16, float16") as caught:
        common_dtype(gradients_of(dtypes(*received))[1], MIXED)

    details = caught.value.details
    assert details["tensor"] == name
    assert details["expected"] == MIXED.segments[name].tensor.dtype
    assert details["received"] == dtypes(*received)[name].dtype.name


def test_a_gradient_of_another_shape_is_refused():
    """A transposed gradient of the same size is caught here, not at the server."""
    tensor = MIXED.segments["d"].tensor

    with pytest.raises(ShapeMismatch, match=r"shape \(2, 1\). Received: \(1, 2\)"):
        check_shape(np.zeros((1, 2)), tensor)


# Torch, by a double: what of a tensor is used here, and how torch refuses the rest


class TorchTensor:
    """A tensor as torch has it: no NumPy view with a graph, on a GPU, or of bfloat16."""

    layout = "torch.strided"

    def __init__(self, array, dtype, *, requires_grad=False, device="cpu"):
        self.array, self.dtype = array, dtype
        self.requires_grad, self.device = requires_grad, device

    def detach(self):
        return TorchTensor(self.array, self.dtype, device=self.device)

    def cpu(self):
        return TorchTensor(self.array, self.dtype, requires_grad=self.requires_grad)

    def view(self, dtype):
        return TorchTensor(self.array.view(dtype.removeprefix("torch.")), dtype)

    def numpy(self):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        if self.device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if self.dtype in ("torch.bfloat16", "torch.float8_e4m3fn"):
            raise TypeError(f"Got unsupported ScalarType {self.dtype}")
        return self.array

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


@pytest.fixture
def torch(monkeypatch):
    """Stand for the module, which is loaded where there are tensors."""
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(int16="torch.int16"))


@pytest.mark.parametrize("options", [{}, {"requires_grad": True}, {"device": "cuda"}])
def test_a_torch_tensor_is_detached_and_moved(options):
    """A parameter, or a gradient on a GPU, is what a user of torch has at hand."""
    array = np.float32([1, 2])

    arrays, dtypes = gradients_of({"w": TorchTensor(array, "torch.float32", **options)})

    assert np.shares_memory(arrays["w"], array)
    assert dtypes == {"w": "float32"}


@pytest.mark.parametrize("options", [{}, {"requires_grad": True}, {"device": "cuda"}])
def test_bfloat16_of_torch_travels_as_its_bits(torch, options):
    """NumPy has no such dtype; no element is converted or copied."""
    bits = np.float32([1, -2.5]).astype(ml_dtypes.bfloat16).view(np.int16)

    arrays, dtypes = gradients_of({"w": TorchTensor(bits, "torch.bfloat16", **options)})

    assert np.shares_memory(arrays["w"], bits)
    assert arrays["w"].view(ml_dtypes.bfloat16).tolist() == [1, -2.5]
    assert dtypes == {"w": "bfloat16"}


def test_a_torch_tensor_that_numpy_cannot_view_says_what_to_do():
    """Sparse ones, and exotic dtypes."""
    with pytest.raises(InvalidArgument, match=r"torch.float8_e4m3fn for 'w'.*tensor.float"):
        gradients_of({"w": TorchTensor(np.zeros(1), "torch.float8_e4m3fn")})


# A declared dtype


@pytest.mark.parametrize("declared", ["bfloat16", "float16"])
@pytest.mark.parametrize("held", ["uint16", "int16", "same"])
def test_bits_are_what_is_declared(declared, held):
    """For those who have no bfloat16 in NumPy."""
    array = np.float32([1, 2]).astype(declared)
    given = array if held == "same" else array.view(held)

    arrays, dtypes = gradients_of({"w": given, "none": None}, declared)

    assert dtypes == {"w": declared}
    assert arrays["w"].tobytes() == array.tobytes()


@pytest.mark.parametrize("array", [np.zeros(1, "f4"), np.zeros(1, "f2"), np.zeros(1, "u4")])
def test_what_is_not_the_declared_dtype_is_refused(array):
    """Nothing is converted behind the caller's back."""
    with pytest.raises(DtypeMismatch, match=f"Received: {array.dtype} for 'w'; convert it"):
        gradients_of({"w": array}, "bfloat16")


@pytest.mark.parametrize("declared", ["float32", "bf16", 16])
def test_a_declared_dtype_is_one_of_half_width(declared):
    """The others say what they are by themselves."""
    with pytest.raises(InvalidArgument, match="float16 or bfloat16"):
        gradients_of({"w": np.zeros(1, np.uint16)}, declared)


def test_bits_that_nobody_declared_are_no_gradient():
    """uint16 may be anything."""
    with pytest.raises(DtypeMismatch, match="uint16"):
        common_dtype(gradients_of(dtypes("u2", "u2", "u2"))[1], MIXED)
