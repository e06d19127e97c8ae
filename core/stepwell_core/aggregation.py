"""One gradient out of several: the weighted mean, tensor by tensor over those who sent it.

    sum(weight * g) / sum(weight)

Summed in the parameter's dtype, in the order in which they are added, so the bytes depend on the
order and on nothing else. Loss scales are taken out: each on its gradient's way into the sum, or,
where all are the same, once at the end, as Keras does with the mean gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from stepwell_core import kernels
from stepwell_core.gradient import Gradient
from stepwell_core.kernels import Stages
from stepwell_core.layout import Arenas, Layout
from stepwell_core.plan import make_runs


class RunningSum:
    """A weighted sum that grows by one gradient at a time, in memory that is allocated once.

    A gradient is read once, when it is added, whatever its format, and not again.

    Args:
        layout: The model's tensors.
        total: Its memory, if the caller has some; used in place.
        weights: What is in that already; see `weights`.
        state: Names of those that are not summed: the last value counts.
        values: Of the state, what is in the memory already; see `values`.
        compiled: False runs the same loops as plain Python, for tests.
    """

    def __init__(
        self,
        layout: Layout,
        total: Arenas | None = None,
        weights: Mapping[str, float] | None = None,
        *,
        state: Collection[str] = (),
        values: Collection[str] = (),
        compiled: bool = True,
    ) -> None:
        self._layout = layout
        self._compiled = compiled
        self._total = layout.new_arenas(None) if total is None else total
        self._weights = dict(weights or {})
        self._state = frozenset(state)
        self._values = set(values)
        self._loss_scale: float | None = None  # what the sum has still to be divided by

    @property
    def weights(self) -> Mapping[str, float]:
        """The sum of the weights by tensor; those that nobody sent have none, nor has state."""
        return self._weights

    @property
    def values(self) -> Collection[str]:
        """The names of the state's tensors that somebody sent."""
        return self._values

    def divisor_with(self, names: Iterable[str], weight: float) -> float:
        """Return the loss scale of the mean with one more gradient in it, whose own is taken out.

        Args:
            names: Of the tensors that it would have; those of the state do not count.
            weight: Its own.
        """
        weights = dict(self._weights)
        for name in names:
            if name not in self._state:
                weights[name] = weights.get(name, 0.0) + weight
        return _divisor(weights)

    def clear(self) -> None:
        """Begin a new sum; O(1), the memory is kept."""
        self._weights = {}
        self._values = set()

    def add(self, gradient: Gradient, weight: float, *, keeps_scale: bool = False) -> None:
        """Add one gradient; O(its bytes).

        Args:
            gradient: Only read.
            weight: Finite and > 0.
            keeps_scale: Leave the loss scale in the sum, as long as all have the same.
        """
        summed = [name for name in gradient.layout.names if name not in self._state]
        for name in self._state.intersection(gradient.layout.names):
            segment = gradient.layout.segments[name]
            place = self._layout.segments[name]
            self._total[place.tensor.dtype][place.start : place.stop] = gradient.values(segment)
            self._values.add(name)
        scale = gradient.loss_scale if keeps_scale else None
        if not self._weights:
            self._loss_scale = scale
        elif self._loss_scale != scale:
            if self._loss_scale is not None:
                self._divide(dict.fromkeys(self._weights, self._loss_scale))
            self._loss_scale = scale = None
        for is_first in (True, False):
            names = {n for n in summed if (n not in self._weights) is is_first}
            self._add(gradient, names, weight, is_first=is_first, unscales=scale is None)
        for name in summed:
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def take(self) -> Gradient:
        """Return the weighted mean, and begin a new sum.

        Its elements are still to be divided by its loss scale, which is never None: by what was
        kept, or by the sum of the weights, if that is one for all tensors; so the step's pass does
        it. Its arenas are the sum's own memory, which the next `add` overwrites.
        """
        layout = self._layout.select(
            name for name in self._layout.names if name in self._weights or name in self._values
        )
        divisor = _divisor(self._weights)
        if self._loss_scale is not None or len(set(self._weights.values())) != 1:
            self._divide(self._weights)
            divisor = 1.0 if self._loss_scale is None else self._loss_scale
        self.clear()
        return Gradient(layout, self._compacted(layout), loss_scale=divisor)

    def _divide(self, divisors: dict[str, float]) -> None:
        for name in [name for name, divisor in divisors.items() if divisor != 1.0]:
            part = self._layout.segments[name].view(self._total)
            np.divide(part, part.dtype.type(divisors[name]), out=part)

    def _compacted(self, layout: Layout) -> Arenas:
        """Move the tensors of a selection to the front; they are in order, so none is run over."""
        for name, segment in layout.segments.items():
            arena, place = self._total[segment.tensor.dtype], self._layout.segments[name]
            if place.start != segment.start:
                arena[segment.start : segment.stop] = arena[place.start : place.stop]
        return {dtype: self._total[dtype][:size] for dtype, size in layout.sizes.items()}

    def _add(
        self,
        gradient: Gradient,
        names: Collection[str],
        weight: float,
        *,
        is_first: bool,
        unscales: bool,
    ) -> None:
        """Add the named tensors of one gradient; the first of a tensor begins its sum."""
        for dtype in gradient.layout.sizes:
            segments = [
                (self._layout.segments[name], segment)
                for name, segment in gradient.layout.segments.items()
                if segment.tensor.dtype == dtype and name in names
            ]
            if not segments:
                continue
            g, payload = gradient.bits(dtype)
            stages = Stages(payload=payload, unscales=unscales and gradient.loss_scale is not None)
            constants = np.ones(kernels.CONSTANTS, dtype)
            constants[kernels.LOSS_SCALE] = gradient.loss_scale or 1.0
            kernel = kernels.aggregate_kernel(stages, is_first=is_first, compiled=self._compiled)
            runs, number = make_runs(segments), np.dtype(dtype).type
            kernel(g, self._total[dtype], runs, constants, number(weight))


def _divisor(weights: Mapping[str, float]) -> float:
    """Return what all tensors have still to be divided by: their weight, if all have the same."""
    divisors = set(weights.values())
    return divisors.pop() if len(divisors) == 1 else 1.0
