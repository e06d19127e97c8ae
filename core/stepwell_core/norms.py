"""How large a gradient and a step are, for whoever watches a training.

    gradient norm   sqrt(sum g^2)          of the gradient that a step takes: reduced over workers,
                                           unscaled, before accumulation and clipping
    update norm     sqrt(sum (w' - w)^2)   of what the step did to the parameters

The first is exact, one read of the gradient by the loop that clipping uses. The second needs the
parameters as they were, which a step in place overwrites, so a part of them is copied before. Up to
`EXACT_ELEMENTS` an arena is copied whole and the norm is exact. Of a larger one evenly spaced
blocks are copied, and the sum of squares is scaled up: an estimate, whose cost does not grow with
the model.

State tensors, whose values are set and not optimized, have no part in either: a count of batches
would be all that one sees.

Pure and without a clock: the caller decides which steps are worth it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np

from stepwell_core import kernels
from stepwell_core.gradient import Gradient
from stepwell_core.layout import Arenas, Array, Layout

EXACT_ELEMENTS = 1 << 18
"""Up to here copying and comparing takes some 100 us."""

BLOCK_ELEMENTS = 1 << 10


def gradient_norm(gradient: Gradient, state: Collection[str] = ()) -> float:
    """Return the norm of a gradient; O(elements), reads each once, without the GIL.

    Args:
        gradient: As a step takes it.
        state: Names of tensors that have values in it, if there are any.
    """
    total = 0.0
    for dtype, size in gradient.layout.sizes.items():
        bits, payload = gradient.bits(dtype)
        for start, stop in _between(_places(gradient.layout, dtype, state), size):
            total += _squares(bits[start:stop], payload, dtype, gradient.loss_scale)
    return math.sqrt(total)


class ParametersBefore:
    """What is kept of the parameters before a step, to be compared with those after it.

    Its buffers are allocated once and used for every step.

    Args:
        parameters: Of the model; tells the sizes.
        layout: Of the model; needed if there is state.
        state: Names of its tensors that are not optimized.
    """

    def __init__(
        self, parameters: Arenas, layout: Layout | None = None, state: Collection[str] = ()
    ) -> None:
        self._kept = {dtype: np.empty_like(_sample(a)) for dtype, a in parameters.items()}
        self._state: dict[str, list[slice]] = {dtype: [] for dtype in parameters}
        if layout is not None and state:
            for dtype, arena in parameters.items():
                places = _places(layout, dtype, state)
                self._state[dtype] = list(_in_sample(places, arena.size))

    def keep(self, parameters: Arenas) -> None:
        """Copy what is compared; O(`EXACT_ELEMENTS`) at most."""
        for dtype, kept in self._kept.items():
            np.copyto(kept, _sample(parameters[dtype]))

    def update_norm(self, parameters: Arenas) -> float:
        """Return the norm of what changed since `keep`; overwrites what was kept."""
        total = 0.0
        with np.errstate(all="ignore"):
            for dtype, kept in self._kept.items():
                np.subtract(_sample(parameters[dtype]), kept, out=kept)
                scale = parameters[dtype].size / max(kept.size, 1)
                flat = kept.reshape(-1)
                for place in self._state[dtype]:
                    flat[place] = 0
                total += scale * _squares(flat, dtype, dtype, None)
        return math.sqrt(total)


def _sample(arena: Array) -> Array:
    """Return what is looked at of an arena, as a view: all of it, or every n-th block."""
    if arena.size <= EXACT_ELEMENTS:
        return arena
    blocks = arena[: arena.size // BLOCK_ELEMENTS * BLOCK_ELEMENTS].reshape(-1, BLOCK_ELEMENTS)
    return blocks[:: math.ceil(arena.size / EXACT_ELEMENTS)]


def _in_sample(places: list[tuple[int, int]], size: int) -> Iterator[slice]:
    """Return where `_sample` of an arena, flat, has what lies in some places of it."""
    if size <= EXACT_ELEMENTS:
        yield from (slice(start, stop) for start, stop in places)
        return
    apart = math.ceil(size / EXACT_ELEMENTS) * BLOCK_ELEMENTS
    blocks = range(0, size // BLOCK_ELEMENTS * BLOCK_ELEMENTS, apart)
    for start, stop in places:
        for number in range(start // apart, min(-(-stop // apart), len(blocks))):
            shift = number * BLOCK_ELEMENTS - blocks[number]
            first, last = max(start, blocks[number]), min(stop, blocks[number] + BLOCK_ELEMENTS)
            if first < last:
                yield slice(first + shift, last + shift)


def _places(layout: Layout, dtype: str, names: Collection[str]) -> list[tuple[int, int]]:
    """Return where an arena has the named tensors, in order; some may not be of the layout."""
    found = (layout.segments[name] for name in names if name in layout.segments)
    return sorted((s.start, s.stop) for s in found if s.tensor.dtype == dtype)


def _between(places: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Return what of an arena lies between some places, in order."""
    begin = 0
    for start, stop in [*places, (size, size)]:
        if begin < start:
            yield begin, start
        begin = stop


def _squares(bits: Array, payload: str, dtype: str, loss_scale: float | None) -> float:
    """Return the sum of squares of elements, in float64; see `kernels.squares_kernel`."""
    stages = kernels.Stages(payload=payload, unscales=loss_scale is not None)
    constants = np.ones(kernels.CONSTANTS, dtype)
    constants[kernels.LOSS_SCALE] = 1.0 if loss_scale is None else loss_scale
    squares = np.empty(1, np.float64)
    runs = np.array([[0, bits.size, 0]], np.int64)
    kernels.squares_kernel(stages)(bits, np.empty(0, dtype), runs, constants, squares)
    return float(squares[0])
