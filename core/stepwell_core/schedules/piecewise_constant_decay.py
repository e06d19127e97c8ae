"""Piecewise constant decay: one rate up to and including each boundary, and one after the last.

    rate = values[0]     step <= boundaries[0]
           values[i]     boundaries[i - 1] < step <= boundaries[i]
           values[-1]    step > boundaries[-1]

Source: Keras 3, `PiecewiseConstantDecay` in `learning_rate_schedule.py`. The rate is the sum of
all values whose range holds the step, so boundaries that do not increase add up, as in Keras.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stepwell_core.errors import InvalidArgument
from stepwell_core.schedules.base import ZERO, LearningRateSchedule, label, numbers


@dataclass(frozen=True)
class PiecewiseConstantDecay(LearningRateSchedule):
    """`values[i]` while `boundaries[i - 1] < step <= boundaries[i]`, as in Keras 3.

    Args:
        boundaries: The last step of each value but the last, increasing; at least one. A fraction
            is cut off, as Keras does. Boundaries beyond int32, which Keras cannot take, are taken.
        values: One more than boundaries. An integer is taken as a float (Keras would compute in
            int32).
        name: Kept for the config; no effect.

    Raises:
        InvalidArgument: The lengths do not fit, or an argument has another type.
    """

    boundaries: Sequence[float]
    values: Sequence[float]
    name: str | None = "PiecewiseConstant"

    def __post_init__(self) -> None:
        self._settle(boundaries=numbers, values=numbers, name=label)
        if len(self.boundaries) != len(self.values) - 1:
            raise InvalidArgument(
                "The length of boundaries should be 1 less than the length of values. "
                f"Received: boundaries of length {len(self.boundaries)}, "
                f"and values of length {len(self.values)}"
            )
        if not self.boundaries:
            raise InvalidArgument(
                "Argument `boundaries` must hold at least one number; for a constant rate give a "
                "plain number as the learning rate. Received: boundaries=[]"
            )

    def _rate(self, step: int) -> np.float32:
        boundaries = [b if isinstance(b, int) else int(np.float32(b)) for b in self.boundaries]
        ranges = [(-math.inf, boundaries[0]), (boundaries[-1], math.inf), *pairwise(boundaries)]
        values = [self.values[0], self.values[-1], *self.values[1:-1]]
        rate = ZERO
        for (low, high), value in zip(ranges, values, strict=True):
            if low < step <= high:
                rate = rate + np.float32(value)
        return rate
