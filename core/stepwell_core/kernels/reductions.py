"""The loops that read a gradient: the squares of a norm, a weighted sum, is it finite."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from stepwell_core.kernels.compiler import Kernel, compile_kernel, inline
from stepwell_core.kernels.decoding import DECODE
from stepwell_core.kernels.stages import ACCUMULATION_STEPS, LOSS_SCALE, Stages

BLOCK_ELEMENTS = 1 << 16
"""A norm is a sum of sums of blocks of this size, so it depends on no thread and no shard."""


@lru_cache(maxsize=64)
def squares_kernel(stages: Stages, *, compiled: bool = True) -> Kernel:
    """Return `kernel(g, acc, runs, constants, squares)`: the squared norm of each run, in float64.

    The gradient is taken as the step takes it: decoded, unscaled and averaged with the accumulator.
    Each run is cut into blocks of `BLOCK_ELEMENTS`, each block into eight interleaved sums; all
    orders are fixed.
    """
    decode, unscales, accumulates = DECODE[stages.payload], stages.unscales, stages.accumulates

    def prepared(g, acc, i, loss_scale, steps):  # type: ignore[no-untyped-def]
        gradient = decode(g[i], loss_scale)
        if unscales:
            gradient = gradient / loss_scale
        if accumulates:
            gradient = (gradient + acc[i]) / steps
        return np.float64(gradient)

    def square_sum(g, acc, loss_scale, steps):  # type: ignore[no-untyped-def]
        a = b = c = d = e = f = h = k = np.float64(0)
        whole = g.size - g.size % 8
        for i in range(0, whole, 8):
            x0 = prepared(g, acc, i, loss_scale, steps)
            x1 = prepared(g, acc, i + 1, loss_scale, steps)
            x2 = prepared(g, acc, i + 2, loss_scale, steps)
            x3 = prepared(g, acc, i + 3, loss_scale, steps)
            x4 = prepared(g, acc, i + 4, loss_scale, steps)
            x5 = prepared(g, acc, i + 5, loss_scale, steps)
            x6 = prepared(g, acc, i + 6, loss_scale, steps)
            x7 = prepared(g, acc, i + 7, loss_scale, steps)
            a += x0 * x0
            b += x1 * x1
            c += x2 * x2
            d += x3 * x3
            e += x4 * x4
            f += x5 * x5
            h += x6 * x6
            k += x7 * x7
        for i in range(whole, g.size):
            x = prepared(g, acc, i, loss_scale, steps)
            a += x * x
        return ((a + b) + (c + d)) + ((e + f) + (h + k))

    if compiled:
        inline(prepared, square_sum)

    def kernel(g, acc, runs, constants, squares):  # type: ignore[no-untyped-def]
        loss_scale, steps = constants[LOSS_SCALE], constants[ACCUMULATION_STEPS]
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            gradients, accumulated = g[first : first + stop - start], acc[start:stop]
            total = np.float64(0)
            for begin in range(0, stop - start, BLOCK_ELEMENTS):
                end = min(begin + BLOCK_ELEMENTS, stop - start)
                total += square_sum(gradients[begin:end], accumulated[begin:end], loss_scale, steps)
            squares[r] = total

    return compile_kernel(kernel) if compiled else kernel


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

    if compiled:
        inline(block)

    def kernel(g, total, runs, constants, weight):  # type: ignore[no-untyped-def]
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            block(g[first : first + stop - start], total[start:stop], constants[LOSS_SCALE], weight)

    return compile_kernel(kernel) if compiled else kernel


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

    if compiled:
        inline(block)

    def kernel(bits, magnitude, limit):  # type: ignore[no-untyped-def]
        for begin in range(0, bits.size, BLOCK_ELEMENTS):
            if not block(bits[begin : begin + BLOCK_ELEMENTS], magnitude, limit):
                return False
        return True

    return compile_kernel(kernel) if compiled else kernel
