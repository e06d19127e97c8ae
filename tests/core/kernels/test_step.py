"""The loops of a step: each stage alone, the runs they take, and what they leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stepwell_core.kernels import (
    CONSTANTS,
    Stages,
    accumulate_kernel,
    average_kernel,
    stages,
    step_kernel,
)
from stepwell_core.optimizers.sgd import update

RATE = np.float32(0.5)


def constants(**values: float) -> np.ndarray:
    """Return constants by name, all others 1."""
    array = np.ones(CONSTANTS, np.float32)
    for name, value in values.items():
        array[getattr(stages, name)] = value
    return array


def step(stage: Stages, g: Any, *, in_place: bool = True, **arrays: Any) -> dict[str, np.ndarray]:
    """Make a step of plain gradient descent from w = 1 with the loop as plain Python."""
    gradient = np.array(g, np.float32)
    size = gradient.size
    given = {
        "w": np.ones(size, np.float32),
        "acc": np.full(size, 3, np.float32),
        "avg": np.full(size, 5, np.float32),
        "runs": np.array([[0, size, 0]]),
        "clips": np.ones((1, 2), np.float32),
        "constants": constants(),
        **arrays,
    }
    given["out"] = given["w"] if in_place else np.full(size, np.nan, np.float32)
    kernel = step_kernel(update, 0, stage, in_place=in_place, compiled=False)
    with np.errstate(all="ignore"):
        kernel(
            given["w"], given["out"], gradient, (), given["acc"], given["avg"], given["runs"],
            given["clips"], given["constants"], (RATE,),
        )  # fmt: skip
    return given


@pytest.mark.parametrize(
    ("stage", "values", "expected"),
    [
        (Stages(), {}, 1 - 8 * 0.5),
        (Stages(unscales=True), {"LOSS_SCALE": 4}, 1 - 2 * 0.5),
        (Stages(accumulates=True), {"ACCUMULATION_STEPS": 2}, 1 - 5.5 * 0.5),
        (Stages(clips="value"), {"CLIP_VALUE": 2}, 1 - 2 * 0.5),
        (Stages(decays=True), {"WEIGHT_DECAY": 0.25, "LEARNING_RATE": 0.5}, 0.875 - 8 * 0.5),
    ],
    ids=["plain", "unscale", "accumulate", "clip", "decay"],
)
def test_each_stage_is_its_formula(
    stage: Stages, values: dict[str, float], expected: float
) -> None:
    """g = 8, w = 1, acc = 3, learning rate 0.5."""
    # Act
    after = step(stage, [8.0], constants=constants(**values))

    # Assert
    assert after["w"].tolist() == [expected]


def test_clipping_by_a_norm_multiplies_and_divides_each_run() -> None:
    """Numerator and denominator belong to the run, in that order of operations."""
    # Act
    after = step(
        Stages(clips="norm"),
        [8.0, 8.0],
        runs=np.array([[0, 1, 0], [1, 2, 1]]),
        clips=np.array([[1, 4], [3, 2]], np.float32),
    )

    # Assert
    assert after["w"].tolist() == [1 - 2 * 0.5, 1 - 12 * 0.5]


def test_clipping_is_before_decay_and_after_the_mean() -> None:
    """mean (8 + 3) / 2 = 5.5, clipped to 2; decay touches the parameter alone."""
    # Act
    after = step(
        Stages(accumulates=True, clips="value", decays=True),
        [8.0],
        constants=constants(
            ACCUMULATION_STEPS=2, CLIP_VALUE=2, WEIGHT_DECAY=0.25, LEARNING_RATE=0.5
        ),
    )

    # Assert
    assert after["w"].tolist() == [0.875 - 2 * 0.5]
    assert after["acc"].tolist() == [0.0]


def test_the_average_takes_the_new_parameter() -> None:
    """avg = 0.75 * 5 + 0.25 * (1 - 8 * 0.5)."""
    # Act
    after = step(
        Stages(averages=True), [8.0], constants=constants(MOMENTUM=0.75, ONE_MINUS_MOMENTUM=0.25)
    )

    # Assert
    assert after["avg"].tolist() == [0.75 * 5 + 0.25 * -3]


def test_stages_that_are_off_touch_nothing() -> None:
    """Without accumulation and average, their arrays stay as they were."""
    # Act
    after = step(Stages(), [8.0])

    # Assert
    assert (after["acc"].tolist(), after["avg"].tolist()) == ([3.0], [5.0])


@pytest.mark.parametrize("gradient", [np.nan, np.inf, -np.inf])
def test_clipping_by_value_lets_nan_through(gradient: float) -> None:
    """As `np.clip`: infinity is clipped, NaN stays NaN."""
    # Act
    after = step(Stages(clips="value"), [gradient], constants=constants(CLIP_VALUE=2))

    # Assert
    expected = np.clip(np.float32(gradient), -2, 2)
    assert np.array_equal(after["w"], [1 - expected * RATE], equal_nan=True)


def test_what_lies_between_runs_is_left_alone() -> None:
    """Only the runs are read and written, and the gradient has its own places."""
    # Act
    after = step(
        Stages(),
        [9.0, 8.0, 7.0, 0.0, 0.0],
        runs=np.array([[1, 2, 0], [3, 5, 1]]),
        clips=np.ones((2, 2), np.float32),
        in_place=False,
    )

    # Assert
    assert np.array_equal(after["out"], [np.nan, -3.5, np.nan, -3, -2.5], equal_nan=True)
    assert after["w"].tolist() == [1.0] * 5


def test_accumulating_adds_the_gradient() -> None:
    """acc = g / loss scale + acc."""
    # Arrange
    acc = np.array([3, 4], np.float32)

    # Act
    kernel = accumulate_kernel(Stages(unscales=True), compiled=False)
    kernel(np.array([8], "f4"), acc, np.array([[1, 2, 0]]), constants(LOSS_SCALE=4))

    # Assert
    assert acc.tolist() == [3.0, 6.0]


def test_the_average_alone_is_its_formula() -> None:
    """avg = momentum * avg + (1 - momentum) * w."""
    # Arrange
    avg = np.array([5], np.float32)

    # Act
    kernel = average_kernel(compiled=False)
    kernel(np.array([1], "f4"), avg, constants(MOMENTUM=0.75, ONE_MINUS_MOMENTUM=0.25))

    # Assert
    assert avg.tolist() == [4.0]
