"""The loops that change a model: one step, one accumulation, one moving average."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from stepwell_core.kernels.compiler import Kernel, compile_kernel, inline, key_of
from stepwell_core.kernels.decoding import DECODE
from stepwell_core.kernels.slots import CUT, READ, WRITE
from stepwell_core.kernels.stages import (
    ACCUMULATION_STEPS,
    CLIP_VALUE,
    LEARNING_RATE,
    LOSS_SCALE,
    MOMENTUM,
    ONE_MINUS_MOMENTUM,
    WEIGHT_DECAY,
    Stages,
)


@lru_cache(maxsize=1024)
def step_kernel(
    update: Callable[..., Any],
    slot_count: int,
    stages: Stages,
    *,
    in_place: bool,
    compiled: bool = True,
) -> Kernel:
    """Return the loop of one step.

    `kernel(w, out, g, slots, acc, avg, runs, clips, constants, scalars)` takes every element of
    the runs through all stages. Without `in_place`, `w` is read and `out` is written; they must
    not overlap. With it, `w` is written and `out` is not touched. `g` is indexed by `runs[:, 2]`,
    all others by `runs[:, 0]` to `runs[:, 1]`. The kernel releases the GIL, allocates nothing and
    cannot fail.

    Args:
        update: The rule, a plain function of scalars; see `Optimizer.update`.
        slot_count: How many slots it takes and returns.
        stages: What happens around it.
        in_place: Which variant.
        compiled: False gives the same loop as plain Python, for tests and debugging.
    """
    decode, cut = DECODE[stages.payload], CUT[slot_count]
    read, write = READ[slot_count], WRITE[slot_count]
    unscales, accumulates, decays = stages.unscales, stages.accumulates, stages.decays
    couples = stages.couples
    clips_norm, clips_value = stages.clips == "norm", stages.clips == "value"
    averages = stages.averages

    def block(w, out, g, slots, acc, avg, numerator, denominator, constants, scalars):  # type: ignore[no-untyped-def]
        loss_scale, steps = constants[LOSS_SCALE], constants[ACCUMULATION_STEPS]
        clip_value, momentum = constants[CLIP_VALUE], constants[MOMENTUM]
        one_minus_momentum = constants[ONE_MINUS_MOMENTUM]
        weight_decay, learning_rate = constants[WEIGHT_DECAY], constants[LEARNING_RATE]
        for i in range(w.size):
            gradient = decode(g[i], loss_scale)
            if unscales:
                gradient = gradient / loss_scale
            if accumulates:
                gradient = (gradient + acc[i]) / steps
                acc[i] = 0.0
            if clips_norm:
                gradient = gradient * numerator / denominator
            if clips_value:
                gradient = np.minimum(np.maximum(gradient, -clip_value), clip_value)
            parameter = w[i]
            if couples:
                gradient = gradient + weight_decay * parameter
            if decays:
                parameter = parameter - parameter * weight_decay * learning_rate
            updated = update(parameter, gradient, *read(slots, i), *scalars)
            write(slots, i, updated)
            if averages:
                avg[i] = momentum * avg[i] + one_minus_momentum * updated[0]
            if in_place:
                w[i] = updated[0]
            else:
                out[i] = updated[0]

    if compiled:
        inline(update)

    def kernel(w, out, g, slots, acc, avg, runs, clips, constants, scalars):  # type: ignore[no-untyped-def]
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            block(
                w[start:stop],
                out[start:stop],
                g[first : first + stop - start],
                cut(slots, start, stop),
                acc[start:stop],
                avg[start:stop],
                clips[r, 0],
                clips[r, 1],
                constants,
                scalars,
            )

    key = ("step", key_of(update), slot_count, stages, in_place)
    return compile_kernel(kernel, block, key=key) if compiled else kernel


@lru_cache(maxsize=64)
def accumulate_kernel(stages: Stages, *, compiled: bool = True) -> Kernel:
    """Return `kernel(g, acc, runs, constants)`: add the gradient to the accumulator."""
    decode, unscales = DECODE[stages.payload], stages.unscales

    def block(g, acc, loss_scale):  # type: ignore[no-untyped-def]
        for i in range(g.size):
            gradient = decode(g[i], loss_scale)
            if unscales:
                gradient = gradient / loss_scale
            acc[i] = gradient + acc[i]

    def kernel(g, acc, runs, constants):  # type: ignore[no-untyped-def]
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            block(g[first : first + stop - start], acc[start:stop], constants[LOSS_SCALE])

    return compile_kernel(kernel, block, key=("accumulate", stages)) if compiled else kernel


@lru_cache(maxsize=2)
def average_kernel(*, compiled: bool = True) -> Kernel:
    """Return `kernel(w, avg, constants)`: the average alone, for tensors that take no step."""

    def kernel(w, avg, constants):  # type: ignore[no-untyped-def]
        momentum, one_minus_momentum = constants[MOMENTUM], constants[ONE_MINUS_MOMENTUM]
        for i in range(w.size):
            avg[i] = momentum * avg[i] + one_minus_momentum * w[i]

    return compile_kernel(kernel, key="average") if compiled else kernel
