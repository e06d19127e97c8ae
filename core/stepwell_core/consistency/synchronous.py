"""Synchronous: one gradient from each of N workers makes one step, the weighted mean of all.

With `reduction="order"` gradients are kept until the step and summed in the bytewise order of the
workers' names, so the result is the same in every run; the server has room for all of them. With
`reduction="arrival"` each is added to one running sum as it comes, so the server has room for one,
and the last bits depend on the order of arrival. A push that was added cannot be taken out: when
its worker leaves, or opens another session, all pushes of that sum are forgotten and sent again.

Source: the bulk-synchronous step of Li et al., 2014, "Scaling Distributed Machine Learning with the
Parameter Server".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from stepwell_core.consistency.barrier import BarrierPolicy
from stepwell_core.consistency.base import (
    Consistency,
    P,
    Policy,
    Standing,
    check_choice,
    check_count,
)
from stepwell_core.errors import InvalidArgument

MAX_WORKERS = 10_000
ALL = "all"
ON_LEAVE = ("shrink", "wait")
REDUCTIONS = ("order", "arrival")


@dataclass(frozen=True)
class Sync(Consistency):
    """A step is the mean of one gradient from each of `workers` workers.

    Attributes:
        workers: How many, from 1 to 10,000; or "all": all who are there at the moment. No room is
            kept for the gradients of "all", so they have to fit beside those of other models.
        on_leave: "shrink": the step no longer waits for a worker that left, once N were there.
            "wait": it waits for N workers always, so another one has to come.
        reduction: "order" or "arrival": in which order gradients are summed, and when.
    """

    workers: int | str
    on_leave: str = "shrink"
    reduction: str = "order"

    mode: ClassVar[str] = "sync"

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be."""
        super().__post_init__()
        if self.workers != ALL:
            check_count("workers", self.workers, 1, MAX_WORKERS)
        check_choice("on_leave", self.on_leave, ON_LEAVE)
        check_choice("reduction", self.reduction, REDUCTIONS)
        if self.workers == ALL and self.on_leave == "wait":
            raise InvalidArgument(
                "on_leave='wait' says for how many workers: give `workers` a number. Received: "
                "workers='all', on_leave='wait'"
            )

    @property
    def adds_on_arrival(self) -> bool:
        """Whether a gradient is added to a running sum when it comes, and cannot be taken out."""
        return self.reduction == "arrival"

    @property
    def most_kept(self) -> int:
        """One of each worker in the order of names, since the first may come last; else none."""
        return 0 if self.adds_on_arrival or isinstance(self.workers, str) else self.workers

    @property
    def most_in_step(self) -> int:
        """One of each worker."""
        return MAX_WORKERS if isinstance(self.workers, str) else self.workers

    def policy(self, standing: Standing = Standing()) -> Policy[P]:  # noqa: B008 - it is frozen
        """Return a barrier where nobody waits yet."""
        needed = None if isinstance(self.workers, str) else self.workers
        return BarrierPolicy(
            needed,
            standing,
            shrinks=self.on_leave == "shrink",
            forgets_together=self.adds_on_arrival,
        )

    def miniature(self, workers: int) -> Sync:
        """Return the same barrier for so many workers at most; it shrinks."""
        least = workers if isinstance(self.workers, str) else min(self.workers, workers)
        return replace(self, workers=least, on_leave="shrink")
