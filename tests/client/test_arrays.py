"""Tests of `stepwell.arrays`: what libraries call an array is viewed; the rest is one sentence."""

from __future__ import annotations

import array as standard
import warnings

import ml_dtypes
import numpy as np
import pytest
from stepwell.arrays import as_array
from stepwell.errors import DtypeMismatch, InvalidArgument

from tests.requirements import require_package

NUMBERS = np.float32([[1, -2.5], [3, 4]])


class WithInterface:
    """An object that says where its numbers lie, as the array protocol has it."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class WithDlpack:
    """An object that has DLPack and nothing else.

    Args:
        array: Of the numbers.
        device: Type and number, as DLPack counts them; (2, 0) is the first CUDA device.
    """

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize("wrap", [WithInterface, WithDlpack, memoryview, lambda array: array])
def test_an_object_with_a_protocol_is_viewed_and_not_copied(wrap):
    """The caller's memory is what is sent, whatever protocol shows it."""
    viewed, dtype = as_array("w", wrap(NUMBERS))

    assert np.shares_memory(viewed, NUMBERS)
    assert dtype == "float32"
    np.testing.assert_array_equal(viewed, NUMBERS)


def test_an_array_of_the_standard_library_and_nested_lists_are_tensors():
    """They are of float64 mostly, as Python's floats are."""
    assert as_array("w", standard.array("f", [1, 2]))[1] == "float32"
    assert as_array("w", [[1.0, 2.0], [3.0, 4.0]])[0].shape == (2, 2)


def test_bfloat16_of_ml_dtypes_keeps_its_name():
    """It is a dtype of NumPy's where that package is loaded."""
    halves = NUMBERS.astype(ml_dtypes.bfloat16)

    viewed, dtype = as_array("w", halves)

    assert viewed is halves
    assert dtype == "bfloat16"


@pytest.mark.parametrize(
    ("value", "received", "next_step"),
    [
        (np.zeros(2, np.int64), "int64", "astype"),
        (np.zeros(2, np.uint8), "uint8", "astype"),
        (np.zeros(2, bool), "bool", "astype"),
        (3, "int64", "astype"),
        (np.zeros(2, np.complex64), "complex64", "real and imaginary"),
        (np.array(["a", "b"]), "str", "encode it"),
        ("text", "str", "encode it"),
        (b"text", "bytes", "encode it"),
        (np.array([1.0, None]), "object", "rows of one length"),
        (object(), "object", "array of numbers"),
        (np.zeros(2, np.longdouble), "float128", "convert it to float32"),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), "float8_e4m3fn", "convert it to float32"),
        (np.zeros(2, "datetime64[s]"), "datetime64", "convert it to float32"),
        (None, "None", "leave it out"),
    ],
)
def test_what_holds_no_floats_is_refused_by_name(value, received, next_step):
    """The sentence names the tensor, what came, and what to do."""
    with pytest.raises(DtypeMismatch) as refusal:
        as_array("layer/kernel", value)

    message = refusal.value.message
    assert f"Received: {received}" in message
    assert "for 'layer/kernel'" in message
    assert next_step in message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[1.0, 2.0], [3.0]], "rows of one length.*Received: list"),
        (WithDlpack(NUMBERS, (2, 0)), "device type 2 of DLPack; copy it to the CPU"),
        (np.ma.masked_array([1.0, 2.0], [False, True]), r"masked array for 'w'; .*filled"),
    ],
    ids=["ragged", "cuda", "masked"],
)
def test_what_cannot_be_viewed_is_refused_by_name(value, words):
    """Nothing is dropped, filled or moved in silence."""
    with pytest.raises(InvalidArgument, match=f"(?s){words}") as refusal:
        as_array("w", value)

    assert refusal.value.details["tensor"] == "w"


def test_a_sparse_matrix_is_refused():
    """NumPy alone would make one object of it."""
    sparse = pytest.importorskip("scipy.sparse")

    with pytest.raises(InvalidArgument, match=r"a sparse csr_\w+ for 'w'; .*todense\(\)"):
        as_array("w", sparse.csr_array(NUMBERS))


# The libraries themselves


@pytest.fixture(scope="module")
def torch():
    """Return torch."""
    return require_package("torch")


@pytest.fixture(scope="module")
def jax():
    """Return JAX."""
    return require_package("jax")


@pytest.mark.full
def test_a_parameter_of_torch_is_viewed(torch):
    """It has a graph, and its memory is the caller's."""
    parameter = torch.nn.Parameter(torch.ones(2, 3))

    viewed, dtype = as_array("w", parameter)

    parameter.data[0, 0] = 7
    assert viewed[0, 0] == 7
    assert dtype == "float32"


@pytest.mark.full
def test_bfloat16_of_torch_is_viewed_as_bits(torch):
    """NumPy has no such dtype without ml_dtypes, and this package does not need it."""
    tensor = torch.tensor([1, -2.5], dtype=torch.bfloat16, requires_grad=True)

    viewed, dtype = as_array("w", tensor)

    assert (viewed.dtype, dtype) == (np.uint16, "bfloat16")
    assert viewed.view(ml_dtypes.bfloat16).tolist() == [1, -2.5]


@pytest.mark.full
def test_a_transposed_tensor_of_torch_is_brought_into_c_order(torch):
    """The bytes that travel are those of the tensor as it reads."""
    viewed, _ = as_array("w", torch.from_numpy(NUMBERS).T)

    assert viewed.flags.c_contiguous
    np.testing.assert_array_equal(viewed, NUMBERS.T)


@pytest.mark.full
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        ("eye(2).to_sparse()", InvalidArgument, r"torch.sparse_coo for 'w'; .*to_dense"),
        ("ones(2, dtype=torch.complex64)", DtypeMismatch, "complex64 for 'w'; give its real"),
        ("ones(2, dtype=torch.int32)", DtypeMismatch, "int32 for 'w'; convert"),
        ("ones(2, device='meta')", InvalidArgument, "torch.float32 for 'w' .*meta"),
        ("ones(2).to(torch.float8_e4m3fn)", InvalidArgument, "torch.float8_e4m3fn for 'w'"),
    ],
)
def test_a_tensor_of_torch_that_cannot_be_pushed_says_why(torch, make, error, words):
    """Sparse, complex, whole numbers, without memory, of an exotic dtype."""
    with pytest.raises(error, match=words):
        as_array("w", eval(f"torch.{make}", {"torch": torch}))


@pytest.mark.full
def test_an_array_of_jax_is_viewed(jax):
    """On the CPU NumPy sees JAX's own memory; bfloat16 keeps its name."""
    array = jax.numpy.asarray(NUMBERS)

    viewed, dtype = as_array("w", array)

    assert dtype == "float32"
    assert viewed.ctypes.data == array.unsafe_buffer_pointer()
    assert as_array("w", array.astype("bfloat16"))[1] == "bfloat16"


@pytest.mark.full
def test_a_traced_array_of_jax_says_where_it_is(jax):
    """A push inside `jit` has no numbers yet."""

    def traced(array):
        as_array("w", array)

    with pytest.raises(InvalidArgument, match=r"not inside a traced function.*Tracer for 'w'"):
        jax.jit(traced)(NUMBERS)


@pytest.mark.full
def test_a_deleted_array_of_jax_is_refused(jax):
    """One that was donated to a compiled function has no memory any more."""
    array = jax.numpy.ones(3)
    array.delete()

    with pytest.raises(InvalidArgument, match=r"'w' .*deleted"):
        as_array("w", array)


@pytest.mark.full
def test_a_sparse_array_of_jax_is_refused(jax):
    """The sentence says how to make it dense."""
    from jax.experimental import sparse

    with pytest.raises(InvalidArgument, match="a sparse BCOO for 'w'"):
        as_array("w", sparse.BCOO.fromdense(jax.numpy.asarray(NUMBERS)))


@pytest.mark.full
def test_a_variable_of_keras_is_its_value():
    """No warning about the array protocol, which Keras's own answer would give."""
    keras = require_package("keras")
    variable = keras.Variable(NUMBERS)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        viewed, dtype = as_array("w", variable)

    assert dtype == "float32"
    np.testing.assert_array_equal(viewed, NUMBERS)
