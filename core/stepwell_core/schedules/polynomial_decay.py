"""Polynomial decay: from one rate to another along `(1 - p) ** power`, once or in cycles.

    once:    p = min(step, decay_steps) / decay_steps
    cycle:   p = step / (decay_steps * ceil(step / decay_steps))           ceil(0) taken as 1
    rate = (initial_learning_rate - end_learning_rate) * (1 - p) ** power + end_learning_rate

Source: Keras 3, `PolynomialDecay` in `learning_rate_schedule.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepwell_core.schedules.base import ONE, LearningRateSchedule, flag, label, number, positive


@dataclass(frozen=True)
class PolynomialDecay(LearningRateSchedule):
    """`(initial - end) * (1 - step / decay_steps) ** power + end`, as Keras 3 computes it.

    Args:
        initial_learning_rate: The rate at step 0. An integer is taken as a float, here and in all
            arguments below (Keras would compute in int32).
        decay_steps: Steps until `end_learning_rate` is reached; above 0.
        end_learning_rate: The last rate.
        power: The power of the polynomial. A negative one gives infinity at the end.
        cycle: Whether the rate rises again after `decay_steps`, to fall until the next multiple.
        name: Kept for the config; no effect.

    Raises:
        InvalidArgument: An argument has another type or is outside its range.
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str | None = "PolynomialDecay"

    def __post_init__(self) -> None:
        self._settle(
            initial_learning_rate=number,
            decay_steps=positive,
            end_learning_rate=number,
            power=number,
            cycle=flag,
            name=label,
        )

    def _rate(self, step: int) -> np.float32:
        initial = np.float32(self.initial_learning_rate)
        end = np.float32(self.end_learning_rate)
        done, decay_steps = np.float32(step), np.float32(self.decay_steps)
        if self.cycle:
            decay_steps = decay_steps * (ONE if done == 0 else np.ceil(done / decay_steps))
        else:
            done = np.minimum(done, decay_steps)
        falling: np.float32 = np.power(ONE - done / decay_steps, np.float32(self.power))
        return (initial - end) * falling + end
