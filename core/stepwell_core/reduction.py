"""How the gradients of one step become one: kept and summed in order, or added as they come.

    InOrder    keeps the gradients that wait, and sums them when the step is decided, in the order
               of its pushes: the same bytes in every run; as many gradients in memory as wait
    OnArrival  adds each gradient to a running sum at once and lets go of it: one sum in memory,
               whose bytes depend on the order of arrival; what was added cannot be taken out

The policy decides which pushes make a step, the reduction what becomes of their gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from stepwell_core.aggregation import RunningSum
from stepwell_core.definition import Definition
from stepwell_core.gradient import Gradient
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.pipeline import Pipeline
from stepwell_core.push import Push


class Reduction(ABC):
    """The gradients of one model's waiting pushes. Not thread-safe: the engine alone uses it.

    Args:
        pipeline: Makes the sum.
        is_scaled: Whether the loss scale is dynamic: a step then has none of its pushes' effect if
            one of them is not finite, and each is divided by its own scale first.
    """

    adds_on_arrival: ClassVar[bool]

    def __init__(self, pipeline: Pipeline, *, is_scaled: bool) -> None:
        self._pipeline = pipeline
        self._is_scaled = is_scaled

    @abstractmethod
    def kept(self, push: Push) -> Push:
        """Return what is kept of a push while it waits."""

    @abstractmethod
    def add(self, push: Push) -> None:
        """Take in the gradient of a push that was admitted to the next step."""

    @abstractmethod
    def is_finite(self, pushes: Sequence[Push]) -> bool:
        """Return whether no gradient of a step has NaN or infinity in it."""

    @abstractmethod
    def reduce(self, pushes: Sequence[Push]) -> Gradient:
        """Return the gradient of a step, and begin anew.

        It may lie in memory of the reduction, which the next `add` overwrites.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget what was added: those pushes wait no more."""


class InOrder(Reduction):
    """Keeps gradients until the step; see the module."""

    adds_on_arrival: ClassVar[bool] = False
    _sum: RunningSum | None = None  # made by the first step of several pushes

    def kept(self, push: Push) -> Push:
        """Keep all of it."""
        return push

    def add(self, push: Push) -> None:
        """Do nothing: the policy keeps the push."""

    def is_finite(self, pushes: Sequence[Push]) -> bool:
        """Look at each; O(bytes)."""
        return all(push.gradient.is_finite() for push in pushes)

    def reduce(self, pushes: Sequence[Push]) -> Gradient:
        """Sum in the order of the pushes; the gradient of a single one is taken as it is."""
        if len(pushes) == 1:
            return pushes[0].gradient
        if self._sum is None:
            self._sum = self._pipeline.new_sum()
        scales = {push.gradient.loss_scale for push in pushes}
        keeps_scale = not (self._is_scaled or pushes[0].is_delta) and len(scales) == 1
        for push in pushes:
            self._sum.add(push.gradient, push.weight, keeps_scale=keeps_scale)
        return self._sum.take()

    def clear(self) -> None:
        """Forget a sum that could not be finished; its memory is kept."""
        if self._sum is not None:
            self._sum.clear()


class OnArrival(Reduction):
    """Adds gradients as they come; see the module."""

    adds_on_arrival: ClassVar[bool] = True

    def __init__(self, pipeline: Pipeline, *, is_scaled: bool) -> None:
        super().__init__(pipeline, is_scaled=is_scaled)
        self._sum = pipeline.new_sum()
        self._keys: list[tuple[str, int, int]] = []
        self._is_finite = True

    def kept(self, push: Push) -> Push:
        """Keep everything but the gradient's arrays."""
        return push.without_arrays()

    def add(self, push: Push) -> None:
        """Add the gradient; O(its bytes). Its arrays are not read again."""
        self._keys.append(push.key)
        if self._is_scaled and self._is_finite:
            self._is_finite = push.gradient.is_finite()
        if self._is_finite:  # else there will be no step
            keeps_scale = not (self._is_scaled or push.is_delta)
            self._sum.add(push.gradient, push.weight, keeps_scale=keeps_scale)

    def is_finite(self, pushes: Sequence[Push]) -> bool:
        """Return what was seen when they came; O(1)."""
        return self._is_finite

    def reduce(self, pushes: Sequence[Push]) -> Gradient:
        """Return the mean of what was added, which is exactly the step's pushes."""
        assert sorted(self._keys) == sorted(push.key for push in pushes), "the sum is the step's"
        gradient = self._sum.take()
        self.clear()
        return gradient

    def clear(self) -> None:
        """Begin the sum anew; its memory is kept."""
        self._sum.clear()
        self._keys = []
        self._is_finite = True


def reduction_of(definition: Definition, pipeline: Pipeline) -> Reduction:
    """Return the reduction that a model's definition asks for, with nothing added."""
    kind = OnArrival if definition.consistency.adds_on_arrival else InOrder
    return kind(pipeline, is_scaled=isinstance(definition.optimizer, LossScaleOptimizer))
