"""Bounded staleness: every push is a step, but no worker runs far ahead of the slowest.

Each worker has a clock: how many of its pushes were settled. A push that would take its worker's
clock more than `bound` ahead of the slowest other one waits until that has caught up. A worker that
comes late begins at the slowest one's clock; one that leaves holds nobody up.

Source: Ho et al., 2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
Server" (SSP).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from stepwell_core.consistency.base import (
    Consistency,
    P,
    Policy,
    Standing,
    Step,
    Wait,
    check_count,
)

MAX_BOUND = 1_000_000


@dataclass(frozen=True)
class Bounded(Consistency):
    """Every push is a step, and no worker is more than `bound` steps ahead of the slowest.

    Attributes:
        bound: From 1 to 1,000,000.
    """

    bound: int

    mode: ClassVar[str] = "bounded"

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be."""
        super().__post_init__()
        check_count("bound", self.bound, 1, MAX_BOUND)

    @property
    def gates(self) -> bool:
        """Yes: whose push would wait need not send it."""
        return True

    def policy(self, standing: Standing = Standing()) -> Policy[P]:  # noqa: B008 - it is frozen
        """Return a policy that knows everyone's clock."""
        return BoundedPolicy(self.bound, standing)


class BoundedPolicy(Policy[P]):
    """The clocks of the workers who are there.

    Args:
        bound: How far ahead of the slowest a worker may be.
        standing: Who is there, and where each is.
    """

    def __init__(self, bound: int, standing: Standing) -> None:
        self._bound = bound
        self._clocks = dict(standing.members)
        self._waiting: dict[str, P] = {}  # in the order of arrival

    def offer(self, push: P, parameters_version: int) -> Step[P] | Wait:
        """Make a step of the push, unless its worker is too far ahead."""
        if self.must_wait(push.worker):
            self._waiting[push.worker] = push
            return Wait()
        return Step((push,))

    def must_wait(self, worker: str) -> bool:
        """Return whether one more push would take the worker too far ahead."""
        clock = self._clocks.get(worker)
        others = [other for name, other in self._clocks.items() if name != worker]
        return clock is not None and bool(others) and clock + 1 - min(others) > self._bound

    @property
    def waiting(self) -> Sequence[P]:
        """In the order in which they came."""
        return list(self._waiting.values())

    def due(self) -> Step[P] | None:
        """Return the step of the first who need not wait any more."""
        for worker, push in self._waiting.items():
            if not self.must_wait(worker):
                del self._waiting[worker]
                return Step((push,))
        return None

    def join(self, worker: str, clock: int = 0) -> None:
        """Count the worker's pushes from `clock` on."""
        self._waiting.pop(worker, None)
        self._clocks[worker] = clock

    def leave(self, worker: str) -> None:
        """Hold nobody up for the worker."""
        self._waiting.pop(worker, None)
        self._clocks.pop(worker, None)

    def settled(self, worker: str, outcome: str) -> None:
        """Count; a push that was dropped was one of the worker's steps too."""
        if worker in self._clocks:
            self._clocks[worker] += 1
