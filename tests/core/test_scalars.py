"""The scalars of a step: when it updates, what it learns at, what came with the push."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stepwell_core import kernels
from stepwell_core.errors import InvalidArgument
from stepwell_core.optimizers import SGD, Adam, Optimizer, PerPush
from stepwell_core.scalars import StepScalars, step_scalars
from stepwell_core.schedules import PiecewiseConstantDecay

BOTH = ("float32", "float64")


def calls(optimizer: Optimizer, count: int) -> list[StepScalars]:
    """Return the scalars of the first calls."""
    return [step_scalars(optimizer, BOTH, iterations) for iterations in range(count)]


@pytest.mark.parametrize(
    ("steps", "updates"),
    [(None, "111111"), (0, "111111"), (2, "010101"), (3, "001001"), (5, "000010")],
)
def test_every_kth_call_updates(steps: int | None, updates: str) -> None:
    """The k-th call, not the first: `(iterations + 1) % k == 0` with Keras's raw counter."""
    # Act
    made = calls(SGD(gradient_accumulation_steps=steps), 6)

    # Assert
    assert "".join(str(int(scalars.updates)) for scalars in made) == updates


@pytest.mark.parametrize(
    ("options", "overwrites"),
    [
        ({"ema_overwrite_frequency": None}, "000000"),
        ({"ema_overwrite_frequency": 1}, "111111"),
        ({"ema_overwrite_frequency": 3}, "001001"),
        ({"ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2}, "001100"),
        ({"ema_overwrite_frequency": 3, "use_ema": False}, "000000"),
    ],
    ids=str,
)
def test_the_average_overwrites_every_fth_step(options: dict[str, Any], overwrites: str) -> None:
    """By `iterations // k + 1`, so with accumulation also on the calls in between, as in Keras."""
    # Act
    made = calls(SGD(**{"use_ema": True, **options}), 6)

    # Assert
    assert "".join(str(int(scalars.overwrites)) for scalars in made) == overwrites
    assert all(s.changes_parameters == (s.updates or s.overwrites) for s in made)


def test_the_average_begins_with_the_first_step() -> None:
    """`(iterations != 0) * ema_momentum`: the first average is the parameter itself."""
    # Act
    made = calls(SGD(use_ema=True, ema_momentum=0.75, gradient_accumulation_steps=2), 4)

    # Assert
    constants = [scalars.constants["float32"] for scalars in made]
    assert [c[kernels.MOMENTUM] for c in constants] == [0, 0, 0.75, 0.75]
    assert [c[kernels.ONE_MINUS_MOMENTUM] for c in constants] == [1, 1, 0.25, 0.25]


def test_a_schedule_reads_the_raw_counter() -> None:
    """Calls that only accumulate move it on, as in Keras."""
    # Arrange
    schedule = PiecewiseConstantDecay([0, 1], [0.5, 0.25, 0.125])

    # Act
    made = calls(SGD(schedule, gradient_accumulation_steps=2), 3)

    # Assert
    assert [scalars.learning_rate for scalars in made] == [0.5, 0.25, 0.125]


def test_a_rule_reads_steps() -> None:
    """Adam's t counts updates: two calls of accumulation are one t."""
    # Act
    made = calls(Adam(gradient_accumulation_steps=2), 4)

    # Assert
    alphas = [scalars.rule["float64"][0] for scalars in made]
    assert alphas[0] == alphas[1] != alphas[2] == alphas[3]


def test_a_float_learning_rate_goes_through_float32() -> None:
    """Keras holds it in a float32 variable, for float64 parameters too."""
    # Act
    scalars = step_scalars(SGD(0.1), BOTH, 0)

    # Assert
    assert scalars.learning_rate == float(np.float32(0.1))
    assert scalars.rule["float64"] == (np.float64(np.float32(0.1)),)


def test_a_learning_rate_of_the_push_does_not() -> None:
    """What a callable returns is cast straight to the parameter's dtype."""
    # Act
    scalars = step_scalars(SGD(PerPush()), BOTH, 0, values={"learning_rate": 0.1})

    # Assert
    assert scalars.learning_rate == 0.1
    assert scalars.rule["float64"] == (np.float64(0.1),)
    assert scalars.rule["float32"] == (np.float32(0.1),)


def test_other_values_of_the_push_leave_the_learning_rate() -> None:
    """A beta that comes with the push changes the beta alone."""
    # Act
    scalars = step_scalars(Adam(0.1, beta_1=PerPush()), BOTH, 0, values={"beta_1": 0.5})

    # Assert
    assert scalars.learning_rate == float(np.float32(0.1))
    assert scalars.rule["float64"][1] == 0.5


@pytest.mark.parametrize("value", ["0.1", None, float("nan"), float("inf"), True, 10**400])
def test_a_value_of_the_push_is_checked(value: Any) -> None:
    """It comes from a stranger."""
    # Act / Assert
    with pytest.raises(InvalidArgument):
        step_scalars(SGD(PerPush()), BOTH, 0, values={"learning_rate": value})


def test_a_value_that_did_not_come_is_an_error() -> None:
    """Nothing is made up in its place."""
    # Act / Assert
    with pytest.raises(InvalidArgument, match="comes with each push"):
        step_scalars(SGD(PerPush()), BOTH, 0)


def test_constants_have_the_arenas_dtype() -> None:
    """One array an arena; what is not set is harmless."""
    # Act
    scalars = step_scalars(SGD(weight_decay=0.1, clipvalue=2.0), BOTH, 0, loss_scale=8.0)

    # Assert
    for dtype, constants in scalars.constants.items():
        assert constants.dtype.name == dtype
        assert constants[kernels.LOSS_SCALE] == 8
        assert constants[kernels.WEIGHT_DECAY] == np.dtype(dtype).type(0.1)
        assert constants[kernels.CLIP_VALUE] == 2
        assert constants[kernels.ACCUMULATION_STEPS] == 1
