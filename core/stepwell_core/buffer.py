"""What a `Buffered` model has gathered since its last step: a sum that outlives restarts.

Its memory is one of the model's slots, `buffer`, so it is in every checkpoint; its weights, the
names of the state whose values came, and the number of gradients in it are in the checkpoint's
bookkeeping. A journal has each gradient that was added. See `consistency/buffered.py`.
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
from stepwell_core.wire import Kind

MAX_TENSORS = 65_536  # of any layout

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
        kind: What they are, if there are any.

    Raises:
        CheckpointInvalid: `said` is not of such a buffer.
        UnknownTensor: It names tensors that the model does not have.
    """

    def __init__(self, pipeline: Pipeline, arenas: Arenas, said: Mapping[str, Any]) -> None:
        self.kind: Kind = "delta" if said.get("kind") == "delta" else "gradient"
        self.count, weights, values = _checked(said) if said else (0, {}, set())
        if weights or values:
            pipeline.layout.select({*weights, *values})  # refuses names that are not of the model
        if not (values <= pipeline.state and pipeline.state.isdisjoint(weights)):
            raise CheckpointInvalid("What was gathered has values of the model's state alone.")
        self._pipeline = pipeline
        self._sum: RunningSum = pipeline.new_sum(arenas, weights, values)

    def add(self, gradient: Gradient, weight: float) -> None:
        """Add a gradient; O(its bytes)."""
        self.kind = "delta" if (gradient.loss_scale or 1.0) < 0 else "gradient"
        self._sum.add(gradient, weight)
        self.count += 1

    def divisor_with(self, gradient: Gradient | None, weight: float | None) -> float:
        """Return the loss scale that `take` would return with one more gradient in it, or none."""
        names = () if gradient is None else gradient.layout.names
        return self._sum.divisor_with(names, weight or 0.0)

    def assigns_with(self, gradient: Gradient | None) -> bool:
        """Return whether `take` would return values of state with one more gradient in it."""
        comes = gradient is not None and self._pipeline.assigns(gradient.layout)
        return comes or bool(self._sum.values)

    def take(self) -> Gradient:
        """Return the mean, and begin anew; see `RunningSum.take`."""
        self.count = 0
        return self._sum.take()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        weights = dict(self._sum.weights)
        said = {"count": self.count, "kind": self.kind, "weights": weights}
        # Left out where there are none, so that an older server can read it.
        return {**said, "values": sorted(self._sum.values)} if self._sum.values else said


def _checked(said: Mapping[str, Any]) -> tuple[int, dict[str, float], set[str]]:
    """Return the count, the weights by tensor, and the names of the values of state."""
    try:
        whole = {"kind": "gradient", "values": (), **said}
        read = strict.mapping(whole, "count", "kind", "weights", "values")
        weights = strict.mapping(read["weights"])
        values = set(map(str, strict.sequence(read["values"], MAX_TENSORS)))
        count = strict.integer(read["count"])
        if bool(count) is not bool(weights or values):
            raise ValueError("gradients without weights, or weights without gradients")
        return count, {name: strict.positive(weight) for name, weight in weights.items()}, values
    except ValueError as error:
        raise CheckpointInvalid(
            f"What a model has gathered cannot be read ({error}); nothing changed."
        ) from None


def discounted(gradient: Gradient, discount: float) -> Gradient:
    """Return a gradient times a factor, which is applied when it is read; O(1).

    Values of state in it stay as they are.
    """
    if discount == 1.0:
        return gradient
    return replace(gradient, loss_scale=(gradient.loss_scale or 1.0) / discount)
