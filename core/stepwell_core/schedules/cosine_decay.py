"""Cosine decay, with a linear warm-up before it where one is asked for.

    without warmup_target:   s = min(step, decay_steps),  peak = initial_learning_rate
    step < warmup_steps:     rate = (warmup_target - initial_learning_rate) * step / warmup_steps
                                    + initial_learning_rate
    afterwards:              s = min(step, decay_steps + warmup_steps) - warmup_steps,
                             peak = warmup_target

    rate = peak * ((1 - alpha) * 0.5 * (1 + cos(pi * s / decay_steps)) + alpha)

Source: Keras 3, `CosineDecay` in `learning_rate_schedule.py`; Loshchilov and Hutter, "SGDR", 2016
(arXiv:1608.03983), without its restarts; the warm-up is of Goyal et al., 2017 (arXiv:1706.02677).
Differs from `CosineDecayRestarts` in that `1 - alpha` is taken in double and rounded then.
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
    optional_number,
    positive,
)


@dataclass(frozen=True)
class CosineDecay(LearningRateSchedule):
    """`peak * ((1 - alpha) * (1 + cos(pi * s / decay_steps)) / 2 + alpha)`, as in Keras 3.

    Args:
        initial_learning_rate: The rate at step 0. An integer is taken as a float, here and in all
            arguments below (Keras would compute in int32, also for the 0 of its own example).
        decay_steps: Steps of the decay, without the warm-up; above 0.
        alpha: The last rate as a fraction of the peak.
        name: Kept for the config; no effect.
        warmup_target: The peak, reached at the end of the warm-up; None is no warm-up.
        warmup_steps: Steps of the warm-up. With 0 the decay begins at `warmup_target` at once.
            Without a `warmup_target` it has no effect.

    Raises:
        InvalidArgument: An argument has another type or is outside its range.
    """

    initial_learning_rate: float
    decay_steps: float
    alpha: float = 0.0
    name: str | None = "CosineDecay"
    warmup_target: float | None = None
    warmup_steps: float = 0

    def __post_init__(self) -> None:
        self._settle(
            initial_learning_rate=number,
            decay_steps=positive,
            alpha=number,
            name=label,
            warmup_target=optional_number,
            warmup_steps=number,
        )

    def _rate(self, step: int) -> np.float32:
        initial, decay_steps = np.float32(self.initial_learning_rate), np.float32(self.decay_steps)
        if self.warmup_target is None:
            return self._decay(np.minimum(np.float32(step), decay_steps), initial)
        target, warmup_steps = np.float32(self.warmup_target), np.float32(self.warmup_steps)
        done: np.float32 = np.minimum(np.float32(step), decay_steps + warmup_steps)
        if done < warmup_steps:
            return (target - initial) * (done / warmup_steps) + initial
        return self._decay(done - warmup_steps, target)

    def _decay(self, done: np.float32, peak: np.float32) -> np.float32:
        wave: np.float32 = HALF * (ONE + np.cos(PI * (done / np.float32(self.decay_steps))))
        return peak * (np.float32(1 - self.alpha) * wave + np.float32(self.alpha))
