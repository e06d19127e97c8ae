"""A push, from what came in to what was decided about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from stepwell_core.definition import Definition
from stepwell_core.errors import InvalidInput
from stepwell_core.gradient import Gradient
from stepwell_core.scalars import StepScalars
from stepwell_core.session import Result
from stepwell_core.state import Counters
from stepwell_core.wire import Kind


@dataclass(frozen=True)
class Push:
    """A gradient, or a delta that is taken as one, and who sent it.

    Attributes:
        worker: Name of the worker.
        epoch: Of its session.
        sequence: 0, 1, 2, ... within the session.
        incarnation: Of the model, as the session knows it.
        gradient: Read until the push is settled, or until it is added to a running sum; the
            sender's buffer is free afterwards. Of a delta it is the delta itself, whose loss scale
            makes it the pseudo-gradient once it is admitted.
        version: Of the parameters it was computed at; None if the worker never pulled.
        weight: In an aggregate; from `LEAST_WEIGHT` to `MOST_WEIGHT`.
        loss_scale: What the loss was multiplied by; None means the current one. Of a delta it has
            no meaning.
        hyperparameters: Values of those that were declared to come with each push.
        kind: What the tensors are, "gradient" or "delta".
        metrics: Finite numbers by name, such as the loss; for the history, no step reads them.
        state: Names of the tensors in `gradient` that have values instead, which replace the old;
            of a delta too.
        fingerprints: Returns the fingerprint of the payload, if somebody works it out elsewhere
            meanwhile; None works it out when it is asked for.
    """

    worker: str
    epoch: int
    sequence: int
    incarnation: str
    gradient: Gradient
    version: int | None = None
    weight: float = 1.0
    loss_scale: float | None = None
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "gradient"
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: Collection[str] = ()
    fingerprints: Callable[[], str] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def payload_fingerprint(self) -> str:
        """The payload's; see `Gradient.fingerprint`."""
        return self.gradient.fingerprint() if self.fingerprints is None else self.fingerprints()

    @property
    def fingerprint(self) -> str:
        """The push's; see `fingerprint_of`."""
        return fingerprint_of(self.kind, self.payload_fingerprint)

    @property
    def is_delta(self) -> bool:
        """Whether it is `w_local - w_pulled`, of which the negative is taken as a gradient."""
        return self.kind == "delta"

    @property
    def key(self) -> tuple[str, int, int]:
        """What names the push in the ledger."""
        return self.worker, self.epoch, self.sequence

    def without_arrays(self) -> Push:
        """Return the push without its gradient's elements, which then may be freed or reused."""
        fingerprint = self.payload_fingerprint
        nothing = Gradient(self.gradient.layout, {}, self.gradient.dtype)
        return replace(self, gradient=nothing, fingerprints=lambda: fingerprint)


def fingerprint_of(kind: Kind, payload_fingerprint: str) -> str:
    """Return the fingerprint of a push: the same bytes as another kind are another push."""
    return payload_fingerprint if kind == "gradient" else f"{kind}:{payload_fingerprint}"


@dataclass(frozen=True)
class Waiting:
    """The push waits for others; its result comes with the step that contains it.

    Attributes:
        is_added: The gradient is in a running sum: the engine holds no array of it and reads it no
            more, so its buffer is free at once. Else it is free when the push is settled, or waits
            no more for another reason.
    """

    is_added: bool = False


@dataclass(frozen=True)
class Staged:
    """A change that was decided and is not made yet; `record.py` writes it down.

    Attributes:
        results: What each push in it will be answered.
        counters: The model's after the change.
        gradient: What the step takes, already reduced; None if no step is made. It may lie in the
            engine's own memory, which is reused for the next step.
        scalars: Of the step; None if there is none.
        weight: With which the gradient is added to the model's buffer; None if it is not. A step
            then takes the buffer's mean, and so does one without a gradient.
    """

    results: tuple[tuple[Push, Result], ...]
    counters: Counters
    gradient: Gradient | None = None
    scalars: StepScalars | None = None
    weight: float | None = None

    @property
    def takes_buffer(self) -> bool:
        """Whether a step is made of what was gathered."""
        return self.scalars is not None and (self.gradient is None or self.weight is not None)


LEAST_FACTOR = float(np.finfo(np.float32).tiny)
MOST_FACTOR = float(np.finfo(np.float32).max)
"""What a float32 gradient can be divided by and not be 0 or infinite at once."""

LEAST_WEIGHT, MOST_WEIGHT = 2.0**-64, 2.0**64
"""Far from the ends of float32 (2^-126, 2^128): a step sums up to a million gradients times their
weights, and a sum that overflows is a model full of NaN, which no look at one gradient prevents."""


def check_push(push: Push, definition: Definition, newest_version: int) -> None:
    """Refuse a push that breaks a rule of its model, whatever its gradient holds.

    Args:
        push: As it came.
        definition: Of the model.
        newest_version: Of the model's parameters.

    Raises:
        InvalidInput: It says something that cannot be.
        InvalidArgument: A hyperparameter that came with it breaks its rule.
    """
    definition.check_tensors(push.gradient.layout.segments, push.state)
    if not LEAST_WEIGHT <= push.weight <= MOST_WEIGHT:
        raise InvalidInput(
            "A weight is from 2^-64 to 2^64, so that float32 holds the sum of a step. Received: "
            f"{push.weight}"
        )
    scale = push.loss_scale
    if scale is not None and not LEAST_FACTOR <= scale <= MOST_FACTOR:
        raise InvalidInput(f"A loss scale is finite and > 0, as a float32 too. Received: {scale}")
    if push.version is not None and push.version > newest_version:
        raise InvalidInput(
            f"The gradient says it was computed at version {push.version}, but the model is at "
            f"{newest_version}"
        )
    definition.check_values(push.hyperparameters)
