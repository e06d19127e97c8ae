"""The few numbers of a step that are the same for all elements, in Keras's order of operations.

They are computed in the parameter's dtype, once a step and never in a loop. A journal keeps them,
since `pow` and `exp` may differ between CPUs and a recovery elsewhere must still be bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell_core import kernels
from stepwell_core.layout import Array
from stepwell_core.optimizers import Optimizer
from stepwell_core.schedules import LearningRateSchedule


@dataclass(frozen=True)
class StepScalars:
    """What is the same for all elements of one step.

    Attributes:
        learning_rate: Of this step.
        updates: False while gradients are only accumulated.
        overwrites: Whether the average overwrites the parameters afterwards.
        constants: For the stages, by arena dtype; see the positions in `kernels`.
        rule: For the rule, by arena dtype; see `Optimizer.scalars`.
    """

    learning_rate: float
    updates: bool
    overwrites: bool
    constants: dict[str, Array]
    rule: dict[str, tuple[Any, ...]]

    @property
    def changes_parameters(self) -> bool:
        """Whether the parameters' bytes change, so that the step needs a buffer to write to."""
        return self.updates or self.overwrites


def step_scalars(
    optimizer: Optimizer,
    dtypes: Iterable[str],
    iterations: int,
    loss_scale: float | None = None,
    values: Mapping[str, float] | None = None,
    scale: float = 1.0,
) -> StepScalars:
    """Return the scalars of the next step.

    Args:
        optimizer: Rule and options.
        dtypes: Of the arenas.
        iterations: Keras's raw counter: calls so far, accumulating ones included.
        loss_scale: What the gradient is divided by, if anything.
        values: Hyperparameters that came with the push.
        scale: What the learning rate is multiplied by.

    Raises:
        InvalidArgument: A value breaks its hyperparameter's rule.
    """
    learning_rate = _learning_rate(optimizer, iterations, values or {})
    if scale != 1.0:
        learning_rate = learning_rate * scale
    optimizer = optimizer.with_values(values) if values else optimizer
    k = optimizer.gradient_accumulation_steps or 1
    steps = iterations // k  # Keras's `iterations`; schedules read the raw counter
    frequency = optimizer.ema_overwrite_frequency if optimizer.use_ema else None
    constants, rule = {}, {}
    with np.errstate(all="ignore"):
        for dtype in dtypes:
            rate = np.dtype(dtype).type(learning_rate)
            constants[dtype] = _constants(optimizer, rate, steps, k, loss_scale)
            rule[dtype] = optimizer.scalars(rate, steps)
    return StepScalars(
        learning_rate=float(learning_rate),
        updates=(iterations + 1) % k == 0,
        overwrites=bool(frequency) and (steps + 1) % (frequency or 1) == 0,
        constants=constants,
        rule=rule,
    )


def _learning_rate(optimizer: Optimizer, iterations: int, values: Mapping[str, float]) -> Any:
    rate = optimizer.learning_rate
    if isinstance(rate, LearningRateSchedule):
        return rate(iterations)
    if callable(rate) and "learning_rate" in values:
        return values["learning_rate"]  # Keras casts it straight to the parameter's dtype
    return optimizer.learning_rate_value


def _constants(
    optimizer: Optimizer, learning_rate: Any, steps: int, k: int, loss_scale: float | None
) -> Array:
    number = type(learning_rate)
    momentum = number(steps != 0) * number(optimizer.ema_momentum)
    constants = np.ones(kernels.CONSTANTS, number)
    constants[kernels.LOSS_SCALE] = 1.0 if loss_scale is None else loss_scale
    constants[kernels.ACCUMULATION_STEPS] = k
    constants[kernels.CLIP_VALUE] = optimizer.clipvalue or 0.0
    constants[kernels.WEIGHT_DECAY] = optimizer.weight_decay or 0.0
    constants[kernels.LEARNING_RATE] = learning_rate
    constants[kernels.MOMENTUM] = momentum
    constants[kernels.ONE_MINUS_MOMENTUM] = number(1) - momentum
    return constants
