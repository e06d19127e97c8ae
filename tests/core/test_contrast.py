"""Tests of `stepwell_core.contrast`: how two definitions differ, in words."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell_core.consistency import Async, Sync
from stepwell_core.definition import Definition
from stepwell_core.layout import Layout
from stepwell_core.optimizers import SGD, Adam
from stepwell_core.schedules import ExponentialDecay


def layout(**shapes):
    """Return a layout of float32 tensors."""
    return Layout.of({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


HERE = Definition("m", layout(w=(3, 2), b=(2,)), Adam(1e-3))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"optimizer": Adam(1e-2)}, "optimizer (learning_rate is 0.001, received 0.01)"),
        (
            {"optimizer": Adam(1e-3, beta_1=0.5, clipnorm=1.0)},
            "optimizer (clipnorm is None, received 1; beta_1 is 0.9, received 0.5)",
        ),
        ({"optimizer": SGD(1e-3)}, "optimizer (is Adam, received SGD)"),
        (
            {"optimizer": Adam(ExponentialDecay(0.1, 10, 0.5))},
            "optimizer (learning_rate is 0.001, received ExponentialDecay)",
        ),
        ({"consistency": Sync(4)}, "consistency (is async, received sync)"),
        (
            {"consistency": Async(max_staleness=3)},
            "consistency (max_staleness is None, received 3)",
        ),
        ({"on_nonfinite": "drop"}, "on_nonfinite (is 'reject', received 'drop')"),
        (
            {"layout": layout(w=(3, 3), b=(2,))},
            "tensors ('w' is float32 (3, 2), received float32 (3, 3))",
        ),
        (
            {"layout": layout(w=(3, 2), c=(2,))},
            "tensors ('b' is float32 (2,), received without it; "
            "'c' is not there, received float32 (2,))",
        ),
        ({"layout": layout(b=(2,), w=(3, 2))}, "tensors (the same ones are in another order)"),
    ],
)
def test_a_difference_is_told_with_both_values(other, words):
    """Who asked for another model learns in what, without looking the first one up."""
    parts = {"layout": HERE.layout, "optimizer": HERE.optimizer, **other}

    contrast = HERE.contrast(Definition("m", **parts))

    assert list(contrast.values()) == [words]


def test_of_many_differences_the_first_are_told():
    """An error is a sentence, however many tensors a model has."""
    here = Definition("m", layout(**{f"t{i}": (1,) for i in range(100)}), Adam())
    there = Definition("m", layout(**{f"t{i}": (2,) for i in range(100)}), Adam())

    words = here.contrast(there)["tensors"]

    assert words.endswith("'t3' is float32 (1,), received float32 (2,) and 96 more)")
