"""Tests of `stepwell.deltas`: local parameters minus pulled ones, and what is no such thing."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell.deltas import delta_of
from stepwell.errors import DtypeMismatch, InvalidInput, LayoutMismatch, ShapeMismatch
from stepwell_core.layout import Layout

PULLED = {
    "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.full(3, 0.5, np.float64),
    "scale": np.array(2, np.float32),
}
LAYOUT = Layout.of(PULLED)


def local(**others):
    """Return trained parameters: one more than what was pulled, but for those given."""
    return {**{name: array + array.dtype.type(1) for name, array in PULLED.items()}, **others}


def made(parameters, pulled=PULLED, out=None):
    """Return the delta, in new arrays or in those given."""
    return delta_of(parameters, pulled, LAYOUT, out or LAYOUT.views(LAYOUT.new_arenas()))


def test_a_delta_is_the_difference_in_the_parameters_own_dtypes():
    """Written where it is told to be; neither side is touched."""
    out = LAYOUT.views(LAYOUT.new_arenas(7.0))
    parameters = local(kernel=np.float32([[0.25, -1, 2], [3, 4, 1e-8]]))
    before = {name: array.copy() for name, array in {**PULLED}.items()}

    delta = made(parameters, out=out)

    assert delta is out
    for name, array in PULLED.items():
        np.testing.assert_array_equal(delta[name], parameters[name] - array)
        assert delta[name].dtype == array.dtype
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_local_parameters_of_another_dtype_are_subtracted_before_they_are_rounded(dtype):
    """Float64 parameters keep what float32 would have lost."""
    kernel = PULLED["kernel"].astype(dtype) * np.dtype(dtype).type(1.25)

    delta = made(local(kernel=kernel))

    expected = (kernel.astype(np.float64) - PULLED["kernel"]).astype(np.float32)
    np.testing.assert_array_equal(delta["kernel"], expected)


def test_local_parameters_may_be_anything_that_numpy_can_view():
    """Lists, transposed arrays, another byte order; and infinity, which the server judges."""
    parameters = local(
        kernel=np.arange(6.0).reshape(3, 2).T, bias=[0.5, 1.5, np.inf], scale=np.array(3, ">f4")
    )

    delta = made(parameters)

    np.testing.assert_array_equal(delta["kernel"], [[0, 1, 2], [-2, -1, 0]])
    np.testing.assert_array_equal(delta["bias"], [0, 1, np.inf])
    assert delta["scale"] == 1


WRONG = {
    "a name is missing": ({"kernel": PULLED["kernel"] + 1}, LayoutMismatch, "Missing"),
    "a name too many": (local(extra=np.ones(1)), LayoutMismatch, "unknown: .*extra"),
    "None": (local(bias=None), LayoutMismatch, "Missing: .*bias"),
    "another shape": (local(bias=np.ones(4)), ShapeMismatch, "local parameter of 'bias'"),
    "integers": (local(bias=np.ones(3, int)), DtypeMismatch, "int64 for 'bias'"),
    "bits of bfloat16": (local(bias=np.ones(3, np.uint16)), DtypeMismatch, "float"),
    "no mapping": ([1], InvalidInput, "by name"),
}


@pytest.mark.parametrize(("parameters", "error", "match"), WRONG.values(), ids=WRONG)
def test_what_is_not_what_was_pulled_is_refused(parameters, error, match):
    """By name, shape and dtype, before anything is written."""
    out = LAYOUT.views(LAYOUT.new_arenas(7.0))

    with pytest.raises(error, match=match):
        made(parameters, out=out)

    assert all((array == 7.0).all() for array in out.values())


@pytest.mark.parametrize("name", ["kernel", "bias", "scale"])
def test_parameters_that_were_trained_where_they_were_pulled_are_refused(name):
    """Their difference would be 0 and nothing would be learned, without a word."""
    for same in (PULLED[name], PULLED[name].view(), PULLED[name].reshape(-1).reshape(-1)):
        shaped = same.reshape(PULLED[name].shape)
        with pytest.raises(InvalidInput, match=f"{name}.*very memory"):
            made(local(**{name: shaped}))


def test_a_pull_that_left_no_arrays_or_halves_gives_no_delta():
    """After `pull(into=...)` and `pull(dtype=...)`."""
    with pytest.raises(InvalidInput, match="into"):
        made(local(), pulled={})
    with pytest.raises(DtypeMismatch, match="pull without `dtype`"):
        made(local(), pulled={**PULLED, "kernel": PULLED["kernel"].astype(np.float16)})


def test_torch_tensors_are_subtracted_as_they_are_but_bfloat16():
    """With a graph too; bfloat16 says what to do."""
    torch = pytest.importorskip("torch", reason="torch is the worker's framework here")
    kernel = torch.ones(2, 3, requires_grad=True)

    delta = made(local(kernel=kernel))

    np.testing.assert_array_equal(delta["kernel"], 1 - PULLED["kernel"])
    with pytest.raises(DtypeMismatch, match=r"\.float\(\)"):
        made(local(kernel=kernel.to(torch.bfloat16)))
