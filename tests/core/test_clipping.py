"""Clipping by a norm: Keras's formulas, also where a norm is zero, huge or not finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from stepwell_core.clipping import clip_scales, exact_sum
from stepwell_core.optimizers import SGD

KEY, OTHER = ("float32", 0), ("float64", 0)


def factors(optimizer: SGD, squares: list[float]) -> list[float]:
    """Return what each run of a float32 group is multiplied by in the end."""
    (clips,) = clip_scales(optimizer, {KEY: np.array(squares)}).values()
    assert clips.dtype == np.float32
    with np.errstate(all="ignore"):
        return (clips[:, 0] / clips[:, 1]).tolist()


def test_clipnorm_scales_each_tensor_by_its_own_norm() -> None:
    """Norms 1, 2, 4 and 0 with clipnorm 2: at most 2 remains, and less is left alone."""
    # Act
    scales = factors(SGD(clipnorm=2.0), [1, 4, 16, 0])

    # Assert
    assert scales == [1, 1, 0.5, 1]


def test_global_clipnorm_scales_all_by_one_norm() -> None:
    """Squares 9 and 16 are a norm of 5; with 2.5 all tensors of both arenas are halved."""
    # Act
    clips = clip_scales(
        SGD(global_clipnorm=2.5), {KEY: np.array([9.0, 0.0]), OTHER: np.array([16.0])}
    )

    # Assert
    assert clips[KEY].tolist() == [[0.5, 1], [0.5, 1]]
    assert clips[OTHER].tolist() == [[0.5, 1]]
    assert clips[OTHER].dtype == np.float64


@pytest.mark.parametrize("squares", [[0.0], [1e-60], [6.0, 0.25]])
def test_a_small_gradient_is_left_alone(squares: list[float]) -> None:
    """Below the limit the factor is 1, a norm of zero included."""
    # Act
    scales = [factors(SGD(global_clipnorm=4.0), squares), factors(SGD(clipnorm=4.0), squares)]

    # Assert
    assert scales == [[1.0] * len(squares)] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_makes_nan_of_all(bad: float) -> None:
    """With a global norm, one bad tensor spoils every one, as in Keras."""
    # Act
    scales = factors(SGD(global_clipnorm=1.0), [1.0, bad])

    # Assert
    assert np.isnan(scales).all()


def test_a_tensor_that_is_not_finite_spoils_itself_alone() -> None:
    """With a norm for each tensor: infinity gives zero, which makes NaN of infinity only."""
    # Act
    scales = factors(SGD(clipnorm=1.0), [4.0, np.inf, np.nan])

    # Assert
    assert scales[:2] == [0.5, 0.0]
    assert np.isnan(scales[2])


@pytest.mark.parametrize(
    ("values", "total"),
    [
        ([], 0.0),
        ([1e16, 1.0, -1e16], 1.0),
        ([1.0] + [2.0**-53] * 4, 1.0 + 2.0**-51),
        ([1e308] * 3, math.inf),
        ([1.0, math.inf], math.inf),
    ],
    ids=["nothing", "cancelled", "small", "overflow", "infinite"],
)
def test_a_sum_is_exact_whatever_the_order(values: list[float], total: float) -> None:
    """Shards and threads may add up in any order."""
    # Act
    sums = {exact_sum(values), exact_sum(reversed(values))}

    # Assert
    assert sums == {total}


def test_a_sum_with_nan_is_nan() -> None:
    """NaN is a value here, not an error."""
    # Act
    total: Any = exact_sum([1.0, math.inf, math.nan])

    # Assert
    assert math.isnan(total)
