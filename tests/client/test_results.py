"""Tests of `stepwell.results`: what calls return."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell.results import Parameters, PushResult


def test_parameters_are_a_mapping_in_the_models_order():
    """`Parameters` works wherever a mapping of arrays does."""
    arrays = {"b": np.ones(2, np.float32), "a": np.zeros((), np.float64)}

    parameters = Parameters(arrays, 7, "one", 2.0)

    assert [*parameters] == ["b", "a"]
    assert {**parameters}["b"] is arrays["b"]
    assert "c" not in parameters
    assert (parameters.version, parameters.incarnation, parameters.loss_scale) == (7, "one", 2.0)


def test_parameters_show_their_size_and_not_their_numbers():
    """A model in a notebook or a log is one short line."""
    parameters = Parameters({"a": np.full(1000, 0.12345)}, 7, "one")

    assert repr(parameters) == "<Parameters at version 7: 1 tensors, 1000 elements>"


def test_parameters_have_no_assignment():
    """A name cannot be bound to another array by mistake; writing into the array is fine."""
    parameters = Parameters({"a": np.zeros(2)}, 0, "one")

    with pytest.raises(TypeError):
        parameters["a"] = np.ones(2)
    parameters["a"][:] = 1

    assert parameters["a"].tolist() == [1, 1]


def test_a_result_is_a_value():
    """Two equal results compare equal, and nobody can change one."""
    result = PushResult("applied", 1, 1)

    assert result == PushResult("applied", 1, 1)
    with pytest.raises(AttributeError):
        result.version = 2
