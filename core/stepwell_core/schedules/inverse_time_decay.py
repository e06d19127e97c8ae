"""Inverse time decay: the rate falls as one over the time.

    p    = step / decay_steps                           floor(p) with staircase
    rate = initial_learning_rate / (1 + decay_rate * p)

Source: Keras 3, `InverseTimeDecay` in `learning_rate_schedule.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepwell_core.schedules.base import ONE, LearningRateSchedule, flag, label, number, positive


@dataclass(frozen=True)
class InverseTimeDecay(LearningRateSchedule):
    """`initial_learning_rate / (1 + decay_rate * step / decay_steps)`, as Keras 3 computes it.

    Args:
        initial_learning_rate: The rate at step 0. An integer is taken as a float, here and in all
            arguments below (Keras would compute in int32).
        decay_steps: The unit of time in steps; above 0.
        decay_rate: The growth of the divisor in one unit. A negative one can bring the divisor
            to 0, where the rate is infinite.
        staircase: Whether time moves in whole units only.
        name: Kept for the config; no effect.

    Raises:
        InvalidArgument: An argument has another type or is outside its range.
    """

    initial_learning_rate: float
    decay_steps: float
    decay_rate: float
    staircase: bool = False
    name: str | None = "InverseTimeDecay"

    def __post_init__(self) -> None:
        self._settle(
            initial_learning_rate=number,
            decay_steps=positive,
            decay_rate=number,
            staircase=flag,
            name=label,
        )

    def _rate(self, step: int) -> np.float32:
        p = np.float32(step) / np.float32(self.decay_steps)
        if self.staircase:
            p = np.floor(p)
        return np.float32(self.initial_learning_rate) / (ONE + np.float32(self.decay_rate) * p)
