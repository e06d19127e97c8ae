"""Dynamic loss scaling: `LossScaleOptimizer` around any optimizer.

The worker multiplies its loss by the scale, so that small gradients survive float16; the server
divides the gradients by it. On a non-finite gradient the step is skipped and the scale is halved;
after `dynamic_growth_steps` good steps it is doubled.

Source: Keras 3.15, `loss_scale_optimizer.py`. As there, the inner optimizer's own
`loss_scale_factor` is switched off, and the first doubling comes when the counter of good steps
stands at `dynamic_growth_steps - 1`. What differs: the scale stays where halving would make it zero
and doubling infinite, since neither can be undone by the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from stepwell_core import strict
from stepwell_core.errors import InvalidArgument, shown
from stepwell_core.optimizers import Optimizer
from stepwell_core.optimizers.base import check_name, snake_case

SMALLEST_SCALE = 2.0**-126
LARGEST_SCALE = 2.0**127
"""The powers of two that float32 holds with all its digits; the scale stays between them."""


@dataclass(frozen=True)
class LossScaleOptimizer:
    """An optimizer with a dynamic loss scale.

    Attributes:
        inner_optimizer: The optimizer that makes the steps.
        initial_scale: The loss scale at the beginning.
        dynamic_growth_steps: Good steps before the scale is doubled.
        name: As in Keras.
    """

    module: ClassVar[str] = "keras.optimizers"

    inner_optimizer: Optimizer
    initial_scale: float = 2.0**15
    dynamic_growth_steps: int = 2000
    name: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be; switch off the inner optimizer's own scale, as Keras does."""
        if not isinstance(self.inner_optimizer, Optimizer):
            raise InvalidArgument(
                "`inner_optimizer` must be an optimizer. Received: "
                f"{type(self.inner_optimizer).__name__}"
            )
        check_name(self.name)
        scale, steps = self.initial_scale, self.dynamic_growth_steps
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not is_number or not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
            raise InvalidArgument(
                f"`initial_scale` must be a number from {SMALLEST_SCALE} to {LARGEST_SCALE}. "
                f"Received: initial_scale={shown(scale)}"
            )
        is_integer = isinstance(steps, int) and not isinstance(steps, bool)
        if not is_integer or not 1 <= steps < 2**31:
            raise InvalidArgument(
                "`dynamic_growth_steps` must be an integer from 1 to 2**31 - 1. "
                f"Received: dynamic_growth_steps={shown(steps)}"
            )
        if self.inner_optimizer.loss_scale_factor is not None:
            inner = self.inner_optimizer.with_values({"loss_scale_factor": None})
            object.__setattr__(self, "inner_optimizer", inner)

    def exclude_from_weight_decay(self, var_names: Iterable[str] = ()) -> LossScaleOptimizer:
        """Leave tensors out of the inner optimizer's weight decay (in Keras, without effect)."""
        self.inner_optimizer.exclude_from_weight_decay(var_names)
        return self

    def get_config(self) -> dict[str, Any]:
        """Return Keras's `get_config()`, the inner optimizer as it is."""
        return {
            "name": snake_case(type(self).__name__) if self.name is None else self.name,
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

    @classmethod
    def from_json(cls, value: object) -> LossScale:
        """Return the scale of plain values, perhaps a stranger's.

        Raises:
            ValueError: It is none.
        """
        said = strict.mapping(value, "scale", "good_steps")
        scale = strict.positive(said["scale"])
        if _limited(scale) != scale or float(np.float32(scale)) != scale:
            raise ValueError("a loss scale is a float32 value between its limits")
        return cls(scale, strict.integer(said["good_steps"]))

    def after_finite(self, dynamic_growth_steps: int) -> LossScale:
        """Return the scale after a step that was made."""
        if self.good_steps >= dynamic_growth_steps - 1:
            return LossScale(_limited(self.scale * 2))
        return replace(self, good_steps=self.good_steps + 1)

    def after_nonfinite(self) -> LossScale:
        """Return the scale after a step that was skipped."""
        return LossScale(_limited(self.scale / 2))


def _limited(scale: float) -> float:
    """Return a power of two times a float32 value; between the limits it is one itself."""
    return min(max(scale, SMALLEST_SCALE), LARGEST_SCALE)
