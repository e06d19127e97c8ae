"""The loops that read a gradient: the squares of a norm, a weighted sum, is it finite."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from stepwell_core.kernels.compiler import Kernel, compile_kernel
from stepwell_core.kernels.decoding import DECODE
from stepwell_core.kernels.stages import ACCUMULATION_STEPS, LOSS_SCALE, Stages

BLOCK_ELEMENTS = 1 << 16
"""A norm is a sum of sums of blocks of this size, so it depends on no thread and no shard."""

LANES = 512
"""Sums that grow side by side in a block; a power of two, and 4 KiB of the first-level cache."""


@lru_cache(maxsize=64)
def squares_kernel(stages: Stages, *, compiled: bool = True) -> Kernel:
    """Return `kernel(g, acc, runs, constants, squares)`: the squared norm of each run, in float64.

    The gradient is taken as the step takes it: decoded, unscaled and averaged with the accumulator.
    Each run is cut into blocks of `BLOCK_ELEMENTS`, each block into `LANES` interleaved sums, which
    are added in a tree. All orders are fixed, and all loops can be vectorized.
    """
    decode, unscales, accumulates = DECODE[stages.payload], stages.unscales, stages.accumulates

    def add_squares(g, acc, lanes, loss_scale, steps):  # type: ignore[no-untyped-def]
        for i in range(g.size):
            gradient = decode(g[i], loss_scale)
            if unscales:
                gradient = gradient / loss_scale
            if accumulates:
                gradient = (gradient + acc[i]) / steps
            lanes[i] += np.float64(gradient) * np.float64(gradient)

    def square_sum(g, acc, lanes, loss_scale, steps):  # type: ignore[no-untyped-def]
        lanes[:] = 0.0
        for begin in range(0, g.size, LANES):
            end = min(begin + LANES, g.size)
            add_squares(g[begin:end], acc[begin:end], lanes, loss_scale, steps)
        half = LANES // 2
        while half:
            for i in range(half):
                lanes[i] += lanes[i + half]
            half //= 2
        return lanes[0]

    def kernel(g, acc, runs, constants, squares):  # type: ignore[no-untyped-def]
        loss_scale, steps = constants[LOSS_SCALE], constants[ACCUMULATION_STEPS]
        lanes = np.empty(LANES, np.float64)
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            gradients, accumulated = g[first : first + stop - start], acc[start:stop]
            total = np.float64(0)
            for begin in range(0, stop - start, BLOCK_ELEMENTS):
                block = gradients[begin : begin + BLOCK_ELEMENTS]
                block_acc = accumulated[begin : begin + BLOCK_ELEMENTS]
                total += square_sum(block, block_acc, lanes, loss_scale, steps)
            squares[r] = total

    key = ("squares", stages)
    return compile_kernel(kernel, add_squares, square_sum, key=key) if compiled else kernel


@lru_cache(maxsize=64)
def aggregate_kernel(stages: Stages, *, is_first: bool, compiled: bool = True) -> Kernel:
    """Return `kernel(g, total, runs, constants, weight)`.

    It computes `total = weight * g` for the first gradient and `total = total + weight * g` for
    the others.
    """
    decode, unscales = DECODE[stages.payload], stages.unscales

    def block(g, total, loss_scale, weight):  # type: ignore[no-untyped-def]
        for i in range(g.size):
            gradient = decode(g[i], loss_scale)
            if unscales:
                gradient = gradient / loss_scale
            if is_first:
                total[i] = weight * gradient
            else:
                total[i] = total[i] + weight * gradient

    def kernel(g, total, runs, constants, weight):  # type: ignore[no-untyped-def]
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            block(g[first : first + stop - start], total[start:stop], constants[LOSS_SCALE], weight)

    key = ("aggregate", stages, is_first)
    return compile_kernel(kernel, block, key=key) if compiled else kernel


@lru_cache(maxsize=2)
def finite_kernel(*, compiled: bool = True) -> Kernel:
    """Return `kernel(bits, magnitude, limit)`: whether every element is smaller than a limit.

    `bits` are the elements as signed integers, of the same dtype as the two others. `magnitude`
    masks the sign away; what is left grows with the absolute value, and NaN is above infinity. So
    `limit` is infinity, or the first number that becomes infinite in a narrower dtype.
    """

    def block(bits, magnitude, limit):  # type: ignore[no-untyped-def]
        is_bad = False
        for i in range(bits.size):
            is_bad |= (bits[i] & magnitude) >= limit
        return not is_bad

    def kernel(bits, magnitude, limit):  # type: ignore[no-untyped-def]
        for begin in range(0, bits.size, BLOCK_ELEMENTS):
            if not block(bits[begin : begin + BLOCK_ELEMENTS], magnitude, limit):
                return False
        return True

    return compile_kernel(kernel, block, key="finite") if compiled else kernel
