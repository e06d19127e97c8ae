"""Cosine decay with warm restarts: each period is `t_mul` times longer and `m_mul` times as high.

    x = step / first_decay_steps
    t_mul == 1:   i = floor(x),                                          s = x - i
    otherwise:    i = floor(log(1 - x * (1 - t_mul)) / log(t_mul)),
                  s = (x - (1 - t_mul ** i) / (1 - t_mul)) / t_mul ** i

    rate = initial_learning_rate * ((1 - alpha) * 0.5 * m_mul ** i * (1 + cos(pi * s)) + alpha)

Source: Keras 3, `CosineDecayRestarts` in `learning_rate_schedule.py`; Loshchilov and Hutter,
"SGDR", 2016 (arXiv:1608.03983). As in Keras the logarithms are rounded to float32, so a restart
may come a step late, and then the rate is that of the end of the old period or just past it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepwell_core.schedules.base import (
    HALF,
    ONE,
    PI,
    LearningRateSchedule,
    label,
    number,
    positive,
)


@dataclass(frozen=True)
class CosineDecayRestarts(LearningRateSchedule):
    """`initial * ((1 - alpha) * m_mul**i * (1 + cos(pi * s)) / 2 + alpha)`, as in Keras 3.

    Args:
        initial_learning_rate: The rate at step 0. An integer is taken as a float, here and in all
            arguments below (Keras would compute in int32).
        first_decay_steps: Steps of the first period; above 0.
        t_mul: The factor of a period's length. Below 1 the periods have a finite sum, and the rate
            is NaN from there on, as in Keras.
        m_mul: The factor of a period's first rate.
        alpha: The lowest rate as a fraction of `initial_learning_rate`.
        name: Kept for the config; no effect.

    Raises:
        InvalidArgument: An argument has another type or is outside its range.
    """

    initial_learning_rate: float
    first_decay_steps: float
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str | None = "SGDRDecay"

    def __post_init__(self) -> None:
        self._settle(
            initial_learning_rate=number,
            first_decay_steps=positive,
            t_mul=number,
            m_mul=number,
            alpha=number,
            name=label,
        )

    def _rate(self, step: int) -> np.float32:
        alpha = np.float32(self.alpha)
        period, fraction = self._period(np.float32(step) / np.float32(self.first_decay_steps))
        height: np.float32 = np.power(np.float32(self.m_mul), period)
        wave: np.float32 = HALF * height * (ONE + np.cos(PI * fraction))
        return np.float32(self.initial_learning_rate) * ((ONE - alpha) * wave + alpha)

    def _period(self, x: np.float32) -> tuple[np.float32, np.float32]:
        """Return the number of restarts so far, and the part of the period that is done."""
        t_mul = np.float32(self.t_mul)
        if t_mul == 1:
            whole: np.float32 = np.floor(x)
            return whole, x - whole
        i: np.float32 = np.floor(np.log(ONE - x * (ONE - t_mul)) / np.log(t_mul))
        length: np.float32 = np.power(t_mul, i)
        return i, (x - (ONE - length) / (ONE - t_mul)) / length
