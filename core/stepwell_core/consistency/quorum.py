"""Quorum: the first K gradients of N workers make one step; those that come later are dropped.

The N - K others are backup workers: no step waits for the slowest ones. A gradient that was
computed at parameters that are no more has no effect, and its worker is told `dropped_late`.

Source: Chen et al., 2016, "Revisiting Distributed Synchronous SGD", section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from stepwell_core.consistency.barrier import BarrierPolicy
from stepwell_core.consistency.base import Consistency, P, Policy, Standing, check_count
from stepwell_core.consistency.synchronous import MAX_WORKERS


@dataclass(frozen=True)
class Quorum(Consistency):
    """A step is the mean of the first `quorum` gradients of `workers` workers.

    If fewer than `quorum` workers are left, all who are left make the step.

    Attributes:
        workers: N: how many there are, from 1 to 10,000.
        quorum: K: how many are waited for, from 1 to N.
    """

    workers: int
    quorum: int

    mode: ClassVar[str] = "quorum"

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be."""
        super().__post_init__()
        check_count("workers", self.workers, 1, MAX_WORKERS)
        check_count("quorum", self.quorum, 1, self.workers)

    @property
    def most_kept(self) -> int:
        """One of each worker: a slow body may not take the place of one that the step waits for."""
        return self.workers

    @property
    def most_in_step(self) -> int:
        """One of each worker of the quorum."""
        return self.quorum

    def policy(self, standing: Standing = Standing()) -> Policy[P]:  # noqa: B008 - it is frozen
        """Return a barrier where nobody waits yet."""
        return BarrierPolicy(self.quorum, standing)

    def miniature(self, workers: int) -> Quorum:
        """Return the same for so many workers at most."""
        least = min(self.quorum, workers)
        return replace(self, workers=least, quorum=least)
