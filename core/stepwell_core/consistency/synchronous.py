"""Synchronous: one gradient from each of N workers makes one step, the weighted mean of all.

With `reduction="order"` gradients are kept until the step and summed in the bytewise order of the
workers' names, so the result is the same in every run; the server has room for all of them. With
`reduction="arrival"` each is added to one running sum as it comes, so the server has room for one,
and the last bits depend on the order of arrival. A push that was added cannot be taken out: when
its worker leaves, or opens another session, all pushes of that sum are forgotten and sent again.

The first step waits for N workers. From then on a
worker that closes its session is no longer waited for, and a worker that opens one is, up to N.
When all have left, it begins again: the next step waits for N workers.

Source: the bulk-synchronous step of Li et al., 2014, "Scaling Distributed Machine Learning with the
Parameter Server".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from stepwell_core.consistency.base import Consistency, Drop, P, Policy, Step, Wait
from stepwell_core.errors import InvalidArgument

MAX_WORKERS = 10_000
REDUCTIONS = ("order", "arrival")


@dataclass(frozen=True)
class Sync(Consistency):
    """A step is the mean of one gradient from each of `workers` workers.

    Attributes:
        workers: How many, from 1 to 10,000.
        reduction: "order" or "arrival": in which order gradients are summed, and when.
    """

    workers: int
    reduction: str = "order"

    mode: ClassVar[str] = "sync"

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be."""
        workers = self.workers
        if (
            isinstance(workers, bool)
            or not isinstance(workers, int)
            or not 0 < workers <= MAX_WORKERS
        ):
            raise InvalidArgument(
                f"`workers` must be an integer from 1 to {MAX_WORKERS}. Received: "
                f"workers={repr(workers)[:80]}"
            )
        if self.reduction not in REDUCTIONS:
            raise InvalidArgument(
                f"`reduction` must be one of {', '.join(REDUCTIONS)}. Received: "
                f"reduction={repr(self.reduction)[:80]}"
            )

    @property
    def adds_on_arrival(self) -> bool:
        """Whether a gradient is added to a running sum when it comes, and cannot be taken out."""
        return self.reduction == "arrival"

    @property
    def most_kept(self) -> int:
        """One of each worker in the order of names, since the first may come last; else none."""
        return 0 if self.adds_on_arrival else self.workers

    def policy(self, members: Iterable[str] = (), most_open: int = 0) -> Policy[P]:
        """Return a barrier where nobody waits yet."""
        return SyncPolicy(self.workers, members, most_open, forgets_together=self.adds_on_arrival)


class SyncPolicy(Policy[P]):
    """A barrier of N workers.

    Args:
        workers: N.
        members: See `Consistency.policy`.
        most_open: See `Consistency.policy`.
        forgets_together: Whether, with one push that waits, all are forgotten.
    """

    def __init__(
        self,
        workers: int,
        members: Iterable[str] = (),
        most_open: int = 0,
        *,
        forgets_together: bool = False,
    ) -> None:
        self._workers = workers
        self._forgets_together = forgets_together
        self._waiting: dict[str, P] = {}
        self._members = set(members)
        self._is_gathered = most_open >= workers

    @property
    def needed(self) -> int:
        """How many gradients make the next step."""
        return min(self._workers, len(self._members)) if self._is_gathered else self._workers

    def offer(self, push: P, parameters_version: int) -> Step[P] | Wait | Drop:
        """Keep the push until the barrier is complete; drop one of older parameters."""
        if push.version is not None and push.version < parameters_version:
            return Drop("dropped_late")
        self._waiting[push.worker] = push
        return self._step_if_complete() or Wait()

    @property
    def waiting(self) -> Sequence[P]:
        """In the order of reduction: the bytewise order of the workers' names."""
        return [self._waiting[name] for name in sorted(self._waiting, key=str.encode)]

    def join(self, worker: str) -> None:
        """Wait for the worker from now on, unless N others are waited for already."""
        self._forget(worker)
        self._members.add(worker)
        self._is_gathered = self._is_gathered or len(self._members) >= self._workers

    def leave(self, worker: str) -> Step[P] | None:
        """Wait for one worker less."""
        self._forget(worker)
        self._members.discard(worker)
        self._is_gathered = self._is_gathered and bool(self._members)
        return self._step_if_complete()

    def _forget(self, worker: str) -> None:
        if self._waiting.pop(worker, None) is not None and self._forgets_together:
            self._waiting.clear()

    def _step_if_complete(self) -> Step[P] | None:
        if len(self._waiting) < self.needed:
            return None
        step = Step(tuple(self.waiting))
        self._waiting.clear()
        return step
