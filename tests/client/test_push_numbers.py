"""Numbers that come with a push: of any library, and refused here if they are none."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell.errors import InvalidArgument
from stepwell.push_numbers import said_of, values_of

USUAL = {"version": 3, "kind": "gradient", "weight": 1.0, "loss_scale": None, "metrics": None}


def test_numbers_of_any_library_become_plain_ones():
    """Also 0-dimensional arrays, as a loss is one."""
    said = said_of(
        version=np.int64(3),
        kind="gradient",
        weight=np.float32(0.5),
        loss_scale=1024,
        metrics={"loss": np.array(0.25, np.float32), "is_best": True},
    )

    assert said == {
        "version": 3,
        "kind": "gradient",
        "weight": 0.5,
        "loss_scale": 1024.0,
        "metrics": {"loss": 0.25, "is_best": 1.0},
    }
    assert [type(said[name]) for name in ("version", "weight", "loss_scale")] == [int, float, float]


def test_a_delta_says_no_loss_scale():
    """It has none."""
    assert said_of(**{**USUAL, "kind": "delta", "loss_scale": 1024.0})["loss_scale"] is None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"metrics": {"loss": "0.5"}}, r"`metrics\['loss'\]` is a number. Received: '0.5'"),
        ({"metrics": {"loss": None}}, r"`metrics\['loss'\]` is a number. Received: None"),
        ({"metrics": {"loss": np.zeros(2)}}, r"`metrics\['loss'\]` is a number"),
        ({"metrics": 0.5}, "`metrics` are numbers by name. Received: 0.5"),
        ({"weight": "heavy"}, "`weight` is a number. Received: 'heavy'"),
        ({"weight": 1j}, "`weight` is a number"),
        ({"loss_scale": [2.0]}, "`loss_scale` is a number"),
        ({"version": "new"}, "`version` is a number. Received: 'new'"),
        ({"version": 2.5}, "`version` is a whole number. Received: 2.5"),
        ({"version": float("nan")}, "`version` is a whole number"),
    ],
)
def test_what_is_no_number_is_refused_with_its_name(wrong, sentence):
    """Before anything is sent."""
    with pytest.raises(InvalidArgument, match=sentence):
        said_of(**{**USUAL, **wrong})


def test_hyperparameters_of_a_push_are_named_too():
    """Whether they are values or called for one."""
    assert values_of({"learning_rate": lambda: np.float32(0.5)}) == {"learning_rate": 0.5}
    with pytest.raises(InvalidArgument, match=r"`hyperparameters\['learning_rate'\]` is a number"):
        values_of({"learning_rate": lambda: "small"})
