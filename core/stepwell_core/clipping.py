"""Clipping by a norm: what each run of a gradient is multiplied by and divided by.

    clipnorm:         g * clipnorm / max(norm(g), clipnorm)        a norm for each tensor
    global_clipnorm:  g * scale / 1                                one norm for all tensors
                      scale = c * min(1 / norm, 1 / c) + (norm - norm)

Source: Keras 3.15, `_clip_by_norm` and `clip_by_global_norm` in `base_optimizer.py`. The last
summand makes the scale NaN if the norm is not finite. What differs: squares are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from stepwell_core import kernels
from stepwell_core.gradient import Gradient
from stepwell_core.kernels import Stages
from stepwell_core.layout import Arenas, Array
from stepwell_core.optimizers import Optimizer
from stepwell_core.plan import Plan

Key = tuple[str, int]
"""A group of a plan: the arena's dtype and the position in its list."""


def squared_norms(
    gradient: Gradient,
    accumulator: Arenas | None,
    plan: Plan,
    constants: Mapping[str, Array],
    *,
    compiled: bool = True,
) -> dict[Key, Array]:
    """Return the squared norm of each run, in float64; reads the gradient once.

    Args:
        gradient: Taken as the step takes it: decoded, unscaled, averaged with the accumulator.
        accumulator: Of the gradients before this one, if there is accumulation.
        plan: Of the gradient's tensors.
        constants: Of the step.
        compiled: False runs the same loop as plain Python.
    """
    squares: dict[Key, Array] = {}
    for dtype in gradient.layout.sizes:
        g, payload = gradient.bits(dtype)
        stages = Stages(
            payload=payload,
            unscales=gradient.loss_scale is not None,
            accumulates=accumulator is not None,
        )
        kernel = kernels.squares_kernel(stages, compiled=compiled)
        accumulated = np.empty(0, dtype) if accumulator is None else accumulator[dtype]
        for position, group in enumerate(plan.groups[dtype]):
            squares[dtype, position] = np.empty(len(group.runs), np.float64)
            kernel(g, accumulated, group.runs, constants[dtype], squares[dtype, position])
    return squares


def clip_scales(optimizer: Optimizer, squares: Mapping[Key, Array]) -> dict[Key, Array]:
    """Return numerator and denominator of each run, [n, 2] of the arena's dtype.

    Args:
        optimizer: One that clips by a norm.
        squares: The squared norm of each run, in float64.
    """
    with np.errstate(all="ignore"):
        if optimizer.clipnorm:
            clip = optimizer.clipnorm
            return {key: _clip_each(key[0], sums, clip) for key, sums in squares.items()}
        clip = float(optimizer.global_clipnorm or 0)
        total = exact_sum(float(value) for sums in squares.values() for value in sums)
        return {key: _clip_all(key[0], len(sums), total, clip) for key, sums in squares.items()}


def exact_sum(values: Iterable[float]) -> float:
    """Return the correctly rounded sum, which does not depend on the order."""
    try:
        return math.fsum(values)
    except OverflowError:  # what fsum raises where a sum of floats would be infinite
        return math.inf


def _clip_each(dtype: str, squares: Array, clipnorm: float) -> Array:
    clips = np.empty((len(squares), 2), dtype)
    clips[:, 0] = clipnorm
    clips[:, 1] = np.maximum(np.sqrt(squares).astype(dtype), np.dtype(dtype).type(clipnorm))
    return clips


def _clip_all(dtype: str, count: int, total: float, clip: float) -> Array:
    number = np.dtype(dtype).type
    norm = number(np.sqrt(np.float64(total)))
    scale = number(clip) * np.minimum(number(1) / norm, number(1.0 / clip)) + (norm - norm)
    clips = np.ones((count, 2), dtype)
    clips[:, 0] = scale
    return clips
