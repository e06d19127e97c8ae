"""Buffered: every K pushes make one step, whoever they come from; stale ones count less.

A push is answered at once: its gradient, times 1 / sqrt(1 + staleness), is added to a buffer. The
K-th makes a step of the buffer's mean. So no worker waits for another, and a step has less noise
than a single gradient. What was gathered is in the checkpoint and in the journal.

Source: Nguyen et al., 2022, "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff),
algorithm 1 and section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from stepwell_core.consistency.base import (
    Consistency,
    Gather,
    P,
    Policy,
    Standing,
    check_count,
    staleness,
)

MAX_SIZE = 1_000_000


@dataclass(frozen=True)
class Buffered(Consistency):
    """A step is the mean of `size` gradients, each discounted by its staleness.

    Attributes:
        size: K, from 1 to 1,000,000.
    """

    size: int

    mode: ClassVar[str] = "buffered"

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be."""
        super().__post_init__()
        check_count("size", self.size, 1, MAX_SIZE)

    @property
    def gathers(self) -> bool:
        """Yes: a push is answered before its step is made."""
        return True

    def policy(self, standing: Standing = Standing()) -> Policy[P]:  # noqa: B008 - it is frozen
        """Return a policy that knows how many were gathered."""
        return BufferedPolicy(self.size, standing.gathered)

    def miniature(self, workers: int) -> Buffered:
        """Return the same for so many pushes at most."""
        return Buffered(min(self.size, workers), lease_s=self.lease_s, patience_s=self.patience_s)


class BufferedPolicy(Policy[P]):
    """Counts what was gathered.

    Args:
        size: K.
        gathered: How many were, since the last step.
    """

    def __init__(self, size: int, gathered: int) -> None:
        self._size = size
        self._gathered = gathered

    def offer(self, push: P, parameters_version: int) -> Gather:
        """Gather the push; the K-th makes the step."""
        behind = staleness(push, parameters_version)
        return Gather(1.0 / math.sqrt(1 + behind), completes=self._gathered + 1 >= self._size)

    def settled(self, worker: str, outcome: str) -> None:
        """Count; what made a step ends the count."""
        if outcome == "buffered":
            self._gathered += 1
        elif outcome in ("applied", "accumulated"):
            self._gathered = 0
