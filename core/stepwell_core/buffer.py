"""What a `Buffered` model has gathered since its last step: a sum that outlives restarts.

Its memory is one of the model's slots, `buffer`, so it is in every checkpoint; its weights and the
number of gradients in it are in the checkpoint's bookkeeping. A journal has each gradient that was
added. See `consistency/buffered.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepwell_core import strict
from stepwell_core.aggregation import RunningSum
from stepwell_core.errors import CheckpointInvalid
from stepwell_core.gradient import Gradient
from stepwell_core.layout import Arenas
from stepwell_core.pipeline import Pipeline

BUFFER = "buffer"
"""Name of the slot."""


class Buffer:
    """A sum of gradients. Not thread-safe: the engine alone uses it.

    Args:
        pipeline: Makes the sum.
        arenas: The slot, used in place.
        said: What `to_json` returned, if the slot holds something already; perhaps a stranger's.

    Attributes:
        count: How many gradients are in it.

    Raises:
        CheckpointInvalid: `said` is not of such a buffer.
        InvalidInput: It names tensors that the model does not have.
    """

    def __init__(self, pipeline: Pipeline, arenas: Arenas, said: Mapping[str, Any]) -> None:
        self.count, weights = _checked(said) if said else (0, {})
        if weights:
            pipeline.layout.select(weights)  # refuses names that are not of the model
        self._sum: RunningSum = pipeline.new_sum(arenas, weights)

    def add(self, gradient: Gradient, weight: float) -> None:
        """Add a gradient; O(its bytes)."""
        self._sum.add(gradient, weight)
        self.count += 1

    def divisor_with(self, gradient: Gradient | None, weight: float | None) -> float:
        """Return the loss scale that `take` would return with one more gradient in it, or none."""
        names = () if gradient is None else gradient.layout.names
        return self._sum.divisor_with(names, weight or 0.0)

    def take(self) -> Gradient:
        """Return the mean, and begin anew; see `RunningSum.take`."""
        self.count = 0
        return self._sum.take()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        return {"count": self.count, "weights": dict(self._sum.weights)}


def _checked(said: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    try:
        values = strict.mapping(said, "count", "weights")
        weights = strict.mapping(values["weights"])
        count = strict.integer(values["count"])
        if bool(count) is not bool(weights):
            raise ValueError("gradients without weights, or weights without gradients")
        return count, {name: strict.positive(weight) for name, weight in weights.items()}
    except ValueError as error:
        raise CheckpointInvalid(
            f"What a model has gathered cannot be read ({error}); nothing changed."
        ) from None


def discounted(gradient: Gradient, discount: float) -> Gradient:
    """Return a gradient times a factor, which is applied when it is read; O(1)."""
    if discount == 1.0:
        return gradient
    return replace(gradient, loss_scale=(gradient.loss_scale or 1.0) / discount)
