"""The few numbers of a step that are the same for all elements, in Keras's order of operations.

They are computed in the parameter's dtype, once a step and never in a loop. A journal keeps them,
since `pow` and `exp` may differ between CPUs and a recovery elsewhere must still be bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell_core import kernels
from stepwell_core.groups import ParameterGroup
from stepwell_core.layout import Array
from stepwell_core.optimizers import Optimizer, PerPush
from stepwell_core.schedules import LearningRateSchedule


@dataclass(frozen=True)
class GroupScalars:
    """What is the same for all elements of one group, as in `StepScalars`."""

    constants: dict[str, Array]
    rule: dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class StepScalars:
    """What is the same for all elements of one step.

    Attributes:
        learning_rate: Of this step.
        updates: False while gradients are only accumulated.
        overwrites: Whether the average overwrites the parameters afterwards.
        constants: For the stages, by arena dtype; see the positions in `kernels`.
        rule: For the rule, by arena dtype; see `Optimizer.scalars`.
        groups: Those of tensors that take other numbers, in the order of the model's groups.
        assigns: Whether values of state come with the gradient.
    """

    learning_rate: float
    updates: bool
    overwrites: bool
    constants: dict[str, Array]
    rule: dict[str, tuple[Any, ...]]
    groups: tuple[GroupScalars, ...] = ()
    assigns: bool = False

    def of(self, own: int | None) -> StepScalars | GroupScalars:
        """Return the numbers of a group by its position; None: those of all others."""
        return self if own is None else self.groups[own]

    @property
    def changes_parameters(self) -> bool:
        """Whether the parameters' bytes change, so that the step needs a buffer to write to."""
        return self.updates or self.overwrites or self.assigns


def step_scalars(
    optimizer: Optimizer,
    dtypes: Iterable[str],
    iterations: int,
    loss_scale: float | None = None,
    values: Mapping[str, float] | None = None,
    scale: float = 1.0,
    groups: Sequence[ParameterGroup] = (),
) -> StepScalars:
    """Return the scalars of the next step.

    Args:
        optimizer: Rule and options.
        dtypes: Of the arenas.
        iterations: Keras's raw counter: calls so far, accumulating ones included.
        loss_scale: What the gradient is divided by, if anything.
        values: Hyperparameters that came with the push; a group's are `group/name`.
        scale: What the learning rates are multiplied by.
        groups: Of the model.

    Raises:
        InvalidArgument: A value breaks its hyperparameter's rule.
    """
    values = values or {}
    common = {name: value for name, value in values.items() if "/" not in name}
    learning_rate = _scaled(_learning_rate(optimizer, iterations, common), scale)
    optimizer = optimizer.with_values(common) if common else optimizer
    k = optimizer.gradient_accumulation_steps or 1
    steps = iterations // k  # Keras's `iterations`; schedules read the raw counter
    frequency = optimizer.ema_overwrite_frequency if optimizer.use_ema else None
    dtypes = tuple(dtypes)
    own = tuple(
        _numbers(
            rule := group.rule(optimizer, values),
            dtypes,
            _own_rate(group, rule, learning_rate, iterations, scale),
            steps,
            loss_scale,
        )
        for group in groups
    )
    numbers = _numbers(optimizer, dtypes, learning_rate, steps, loss_scale)
    return StepScalars(
        learning_rate=float(learning_rate),
        updates=(iterations + 1) % k == 0,
        overwrites=bool(frequency) and (steps + 1) % (frequency or 1) == 0,
        constants=numbers.constants,
        rule=numbers.rule,
        groups=own,
    )


def _numbers(
    optimizer: Optimizer,
    dtypes: Iterable[str],
    learning_rate: Any,
    steps: int,
    loss_scale: float | None,
) -> GroupScalars:
    constants, rule = {}, {}
    with np.errstate(all="ignore"):
        for dtype in dtypes:
            rate = np.dtype(dtype).type(learning_rate)
            constants[dtype] = _constants(optimizer, rate, steps, loss_scale)
            rule[dtype] = optimizer.scalars(rate, steps)
    return GroupScalars(constants, rule)


def _own_rate(
    group: ParameterGroup, rule: Optimizer, common: Any, iterations: int, scale: float
) -> Any:
    """Return a group's learning rate; `rule` has the values that came with the push."""
    rate = common
    if "learning_rate" in group.hyperparameters:
        came_with_push = isinstance(group.hyperparameters["learning_rate"], PerPush)
        own = rule.learning_rate if came_with_push else _learning_rate(rule, iterations, {})
        rate = _scaled(own, scale)
    factor = group.learning_rate_multiplier
    return rate if factor == 1.0 else float(rate) * factor


def _scaled(learning_rate: Any, scale: float) -> Any:
    return learning_rate if scale == 1.0 else learning_rate * scale


def _learning_rate(optimizer: Optimizer, iterations: int, values: Mapping[str, float]) -> Any:
    rate = optimizer.learning_rate
    if isinstance(rate, LearningRateSchedule):
        return rate(iterations)
    if callable(rate) and "learning_rate" in values:
        return values["learning_rate"]  # Keras casts it straight to the parameter's dtype
    return optimizer.learning_rate_value


def _constants(
    optimizer: Optimizer, learning_rate: Any, steps: int, loss_scale: float | None
) -> Array:
    number = type(learning_rate)
    momentum = number(steps != 0) * number(optimizer.ema_momentum)
    constants = np.ones(kernels.CONSTANTS, number)
    constants[kernels.LOSS_SCALE] = 1.0 if loss_scale is None else loss_scale
    constants[kernels.ACCUMULATION_STEPS] = optimizer.gradient_accumulation_steps or 1
    constants[kernels.CLIP_VALUE] = optimizer.clipvalue or 0.0
    constants[kernels.WEIGHT_DECAY] = number(optimizer.weight_decay or 0.0)
    constants[kernels.LEARNING_RATE] = learning_rate
    constants[kernels.MOMENTUM] = momentum
    constants[kernels.ONE_MINUS_MOMENTUM] = number(1) - momentum
    return constants
