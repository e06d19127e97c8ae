"""Which stages a kernel has around the rule, and where its constants lie."""

from __future__ import annotations

from dataclasses import dataclass

# The kernels' `constants`, an array of the parameter's dtype, by position.
(
    LOSS_SCALE,
    ACCUMULATION_STEPS,
    CLIP_VALUE,
    WEIGHT_DECAY,
    LEARNING_RATE,
    MOMENTUM,
    ONE_MINUS_MOMENTUM,
) = range(7)
CONSTANTS = 7


@dataclass(frozen=True)
class Stages:
    """What a kernel does around the rule, and on what.

    Attributes:
        payload: What the gradient's elements are: "float16", "bfloat16", "float32" or "float64".
        unscales: Divide by the loss scale.
        accumulates: Take the mean of the accumulator and this gradient, and empty the accumulator.
        clips: "none", "norm" (numerator and denominator a run) or "value".
        decays: Decay the parameter first.
        couples: Add the decay to the gradient instead, as L2 would.
        averages: Update the moving average.
    """

    payload: str = "float32"
    unscales: bool = False
    accumulates: bool = False
    clips: str = "none"
    decays: bool = False
    couples: bool = False
    averages: bool = False
