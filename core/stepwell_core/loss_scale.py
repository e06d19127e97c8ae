"""Dynamic loss scaling: `LossScaleOptimizer` around any optimizer.

The worker multiplies its loss by the scale, so that small gradients survive float16; the server
divides the gradients by it. On a non-finite gradient the step is skipped and the scale is halved;
after `dynamic_growth_steps` good steps it is doubled.

Source: Keras 3.15, `loss_scale_optimizer.py`. As there, the inner optimizer's own
`loss_scale_factor` is switched off, and the first doubling comes when the counter of good steps
stands at `dynamic_growth_steps - 1`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stepwell_core.errors import InvalidArgument
from stepwell_core.optimizers import Optimizer
from stepwell_core.optimizers.base import snake_case


@dataclass(frozen=True)
class LossScaleOptimizer:
    """An optimizer with a dynamic loss scale.

    Attributes:
        inner_optimizer: The optimizer that makes the steps.
        initial_scale: The loss scale at the beginning.
        dynamic_growth_steps: Good steps before the scale is doubled.
        name: As in Keras.
    """

    inner_optimizer: Optimizer
    initial_scale: float = 2.0**15
    dynamic_growth_steps: int = 2000
    name: str | None = None

    def __post_init__(self) -> None:
        """Switch off the inner optimizer's own loss scale, as Keras does."""
        if not isinstance(self.inner_optimizer, Optimizer):
            raise InvalidArgument(
                "`inner_optimizer` must be an optimizer. Received: "
                f"{type(self.inner_optimizer).__name__}"
            )
        scale, steps = self.initial_scale, self.dynamic_growth_steps
        if (
            isinstance(scale, bool)
            or not isinstance(scale, int | float)
            or not 0 < scale < 2.0**127
        ):
            raise InvalidArgument(
                f"`initial_scale` must be a positive, finite float. Received: initial_scale={scale!r}"
            )
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InvalidArgument(
                "`dynamic_growth_steps` must be an integer >= 1. Received: "
                f"dynamic_growth_steps={steps!r}"
            )
        if self.inner_optimizer.loss_scale_factor is not None:
            inner = self.inner_optimizer.with_values({"loss_scale_factor": None})
            object.__setattr__(self, "inner_optimizer", inner)

    def exclude_from_weight_decay(self, var_names: Iterable[str] = ()) -> LossScaleOptimizer:
        """Leave tensors out of the inner optimizer's weight decay."""
        self.inner_optimizer.exclude_from_weight_decay(var_names)
        return self

    def get_config(self) -> dict[str, Any]:
        """Return Keras's `get_config()`, the inner optimizer as it is."""
        return {
            "name": self.name or snake_case(type(self).__name__),
            "inner_optimizer": self.inner_optimizer,
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }


@dataclass(frozen=True)
class LossScale:
    """The dynamic loss scale at one moment; a value, replaced when it changes.

    Attributes:
        scale: What the next gradients are divided by; a float32 value.
        good_steps: Finite steps since the scale last changed (Keras's `step_counter`).
    """

    scale: float
    good_steps: int = 0

    @classmethod
    def initial(cls, optimizer: LossScaleOptimizer) -> LossScale:
        """Return the scale at the beginning."""
        return cls(float(np.float32(optimizer.initial_scale)))

    def after_finite(self, dynamic_growth_steps: int) -> LossScale:
        """Return the scale after a step that was made."""
        if self.good_steps == dynamic_growth_steps - 1:
            return LossScale(_float32_times(self.scale, 2.0))
        return replace(self, good_steps=self.good_steps + 1)

    def after_nonfinite(self) -> LossScale:
        """Return the scale after a step that was skipped."""
        return LossScale(_float32_times(self.scale, 0.5))


def _float32_times(scale: float, factor: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(scale) * np.float32(factor))
