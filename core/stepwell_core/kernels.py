"""Composes an optimizer's rule and the stages around it into one loop over memory, compiled by
Numba.

    decode -> unscale -> accumulate -> clip -> decay -> rule -> EMA -> write

happen for one element after the other, so each array is read and written once. Which stages there
are is fixed when a kernel is composed (`Stages`), so the others cost nothing.

Strict IEEE arithmetic: no `fastmath`, no fused multiply-add, Keras's association. Every scalar
comes in with the parameter's dtype, because a literal would widen float32 to float64.

Three things that look like details and are not, each measured:

- A kernel works on slices and counts from 0: with an offset in the index, Numba's test for negative
  indices keeps LLVM from vectorizing (5 x slower).
- Writing in place is a variant of its own, with one array for reading and writing: two names for
  one array fail the loop's alias check at run time (3 x slower).
- Stages are closures over *plain* functions: a closure over a compiled one misses the on-disk cache
  in every process. The cache then does not notice an edited rule, so its folder is named after a
  hash of all sources of this package; see `cache_folder`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

_VARIABLE = "NUMBA_CACHE_DIR"


def cache_folder() -> Path:
    """Return the folder for compiled kernels: private, and another one for other sources.

    Its parent is `STEPWELL_CACHE_DIR`, else `XDG_CACHE_HOME/stepwell`, else `~/.cache/stepwell`.
    Numba's index files are pickles, the one place where Stepwell reads any, so the folder must
    belong to this user and be closed to others; if it does not, a new temporary folder takes its
    place.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    parent = Path(os.environ.get("STEPWELL_CACHE_DIR") or os.path.join(home, "stepwell"))
    folder = parent / f"kernels-{source_hash()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        is_private = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
        if is_private and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # read-only or no home: compile anew in this process, which costs seconds, not safety
    return Path(tempfile.mkdtemp(prefix="stepwell-kernels-"))


def source_hash() -> str:
    """Return a hash of all sources of this package and of the compiler's versions."""
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()


if _VARIABLE not in os.environ:
    os.environ[_VARIABLE] = str(cache_folder())

import numba  # noqa: E402  it reads the variable when it is imported
from numba.extending import register_jitable  # noqa: E402

BLOCK_ELEMENTS = 1 << 16
"""Norms are sums of the sums of blocks of this size, so that they do not depend on threads or
shards."""


@dataclass(frozen=True)
class Stages:
    """What a kernel does around the rule, and on what.

    Attributes:
        payload: What the gradient's elements are: "float16", "bfloat16", "float32" or "float64".
        unscales: Divide by the loss scale.
        accumulates: Take the mean of the accumulator and this gradient, and empty the accumulator.
        clips: "none", "norm" (numerator and denominator a run) or "value".
        decays: Decay the parameter first.
        averages: Update the moving average.
    """

    payload: str = "float32"
    unscales: bool = False
    accumulates: bool = False
    clips: str = "none"
    decays: bool = False
    averages: bool = False


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

Kernel = Callable[..., Any]


@lru_cache(maxsize=1024)
def step_kernel(
    update: Callable[..., Any],
    slot_count: int,
    stages: Stages,
    *,
    in_place: bool,
    compiled: bool = True,
) -> Kernel:
    """Return the loop of one step: `kernel(w, out, g, slots, acc, avg, runs, clips, constants,
    scalars)`.

    Without `in_place`, `w` is read and `out` is written; they must not overlap. With it, `w` is
    written and `out` is not touched. `g` is indexed by `runs[:, 2]`, all others by `runs[:, 0]` to
    `runs[:, 1]`. The kernel releases the GIL, allocates nothing and cannot fail.

    Args:
        update: The rule, a plain function of scalars; see `Optimizer.update`.
        slot_count: How many slots it takes and returns.
        stages: What happens around it.
        in_place: Which variant.
        compiled: False gives the same loop as plain Python, for tests and debugging.
    """
    decode, cut, read, write = (
        DECODE[stages.payload],
        CUT[slot_count],
        READ[slot_count],
        WRITE[slot_count],
    )
    unscales, accumulates, decays = stages.unscales, stages.accumulates, stages.decays
    averages, clips_value, clips_norm = (
        stages.averages,
        stages.clips == "value",
        stages.clips == "norm",
    )

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
        for function in (update, block):
            register_jitable(function)

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

    return _compile(kernel) if compiled else kernel


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
        register_jitable(prepared)
        register_jitable(square_sum)

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

    return _compile(kernel) if compiled else kernel


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

    if compiled:
        register_jitable(block)

    def kernel(g, acc, runs, constants):  # type: ignore[no-untyped-def]
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            block(g[first : first + stop - start], acc[start:stop], constants[LOSS_SCALE])

    return _compile(kernel) if compiled else kernel


@lru_cache(maxsize=64)
def aggregate_kernel(stages: Stages, *, is_first: bool, compiled: bool = True) -> Kernel:
    """Return `kernel(g, total, runs, constants, weight)`: `total = total + weight * g`, or `=
    weight * g`.
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
        register_jitable(block)

    def kernel(g, total, runs, constants, weight):  # type: ignore[no-untyped-def]
        for r in range(runs.shape[0]):
            start, stop, first = runs[r, 0], runs[r, 1], runs[r, 2]
            block(g[first : first + stop - start], total[start:stop], constants[LOSS_SCALE], weight)

    return _compile(kernel) if compiled else kernel


@lru_cache(maxsize=2)
def average_kernel(*, compiled: bool = True) -> Kernel:
    """Return `kernel(w, avg, constants)`: the moving average alone, for tensors that take no
    step.
    """

    def kernel(w, avg, constants):  # type: ignore[no-untyped-def]
        momentum, one_minus_momentum = constants[MOMENTUM], constants[ONE_MINUS_MOMENTUM]
        for i in range(w.size):
            avg[i] = momentum * avg[i] + one_minus_momentum * w[i]

    return _compile(kernel) if compiled else kernel


@lru_cache(maxsize=2)
def finite_kernel(*, compiled: bool = True) -> Kernel:
    """Return `kernel(bits, mask)`: whether no element has all exponent bits set (infinity or NaN).

    Args (of the kernel): `bits`, the payload as unsigned integers; `mask`, the exponent's bits,
    same dtype.
    """

    def block(bits, mask):  # type: ignore[no-untyped-def]
        bad = 0
        for i in range(bits.size):
            bad |= (bits[i] & mask) == mask
        return bad == 0

    if compiled:
        register_jitable(block)

    def kernel(bits, mask):  # type: ignore[no-untyped-def]
        for begin in range(0, bits.size, BLOCK_ELEMENTS):
            if not block(bits[begin : begin + BLOCK_ELEMENTS], mask):
                return False
        return True

    return _compile(kernel) if compiled else kernel


def _compile(kernel: Kernel) -> Kernel:
    compiled: Kernel = numba.njit(nogil=True, error_model="numpy", cache=True)(kernel)
    return compiled


# How an element of a payload becomes a number of the parameter's dtype, which is that of `like`.
# The half-width formats come as their bits in uint16, since Numba has neither dtype on the CPU.


def _decode_float(x, like):  # type: ignore[no-untyped-def]
    return type(like)(x)


def _decode_float16(x, like):  # type: ignore[no-untyped-def]
    bits = np.uint32(
        (x & np.uint32(0x7FFF)) << np.uint32(13)
    )  # Numba widens <<, hence the outer casts
    sign = np.uint32((x & np.uint32(0x8000)) << np.uint32(16))
    # Shifted into float32's fields the exponent is 112 too small; the product is exact, subnormals
    # included.
    magnitude = np.float32(bits.view(np.float32) * np.float32(2.0**112)).view(np.uint32)
    is_finite = bits < np.uint32(0x0F800000)
    chosen = magnitude if is_finite else np.uint32(bits | np.uint32(0x7F800000))
    return type(like)(np.uint32(chosen | sign).view(np.float32))


def _decode_bfloat16(x, like):  # type: ignore[no-untyped-def]
    return type(like)(np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32))


DECODE: dict[str, Kernel] = {
    "float16": _decode_float16,
    "bfloat16": _decode_bfloat16,
    "float32": _decode_float,
    "float64": _decode_float,
}

# Slots travel as tuples of arrays. Numba unrolls a tuple only where its length is spelled out.


def _cut_0(slots, start, stop):  # type: ignore[no-untyped-def]
    return ()


def _cut_1(slots, start, stop):  # type: ignore[no-untyped-def]
    return (slots[0][start:stop],)


def _cut_2(slots, start, stop):  # type: ignore[no-untyped-def]
    return slots[0][start:stop], slots[1][start:stop]


def _cut_3(slots, start, stop):  # type: ignore[no-untyped-def]
    return slots[0][start:stop], slots[1][start:stop], slots[2][start:stop]


def _read_0(slots, i):  # type: ignore[no-untyped-def]
    return ()


def _read_1(slots, i):  # type: ignore[no-untyped-def]
    return (slots[0][i],)


def _read_2(slots, i):  # type: ignore[no-untyped-def]
    return slots[0][i], slots[1][i]


def _read_3(slots, i):  # type: ignore[no-untyped-def]
    return slots[0][i], slots[1][i], slots[2][i]


def _write_0(slots, i, updated):  # type: ignore[no-untyped-def]
    pass


def _write_1(slots, i, updated):  # type: ignore[no-untyped-def]
    slots[0][i] = updated[1]


def _write_2(slots, i, updated):  # type: ignore[no-untyped-def]
    slots[0][i] = updated[1]
    slots[1][i] = updated[2]


def _write_3(slots, i, updated):  # type: ignore[no-untyped-def]
    slots[0][i] = updated[1]
    slots[1][i] = updated[2]
    slots[2][i] = updated[3]


CUT: tuple[Kernel, ...] = (_cut_0, _cut_1, _cut_2, _cut_3)
READ: tuple[Kernel, ...] = (_read_0, _read_1, _read_2, _read_3)
WRITE: tuple[Kernel, ...] = (_write_0, _write_1, _write_2, _write_3)

for _function in (*DECODE.values(), *CUT, *READ, *WRITE):
    register_jitable(_function)
