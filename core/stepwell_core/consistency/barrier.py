"""A barrier: a step is made when enough workers have brought a gradient each."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell_core.consistency.base import Drop, P, Policy, Standing, Step, Wait


class BarrierPolicy(Policy[P]):
    """Pushes wait until there is one from each of some number of workers.

    The first step waits for that many. From then on the barrier shrinks if it may: a worker that
    left is no longer waited for, and one that came is, up to the number. When all have left it
    begins again.

    Args:
        needed: How many; None means all who are there.
        standing: Who is there.
        shrinks: Whether those who left are no longer waited for.
        forgets_together: Whether, with one push that waits, all are forgotten.
    """

    def __init__(
        self,
        needed: int | None,
        standing: Standing,
        *,
        shrinks: bool = True,
        forgets_together: bool = False,
    ) -> None:
        self._wanted = needed
        self._shrinks = shrinks
        self._forgets_together = forgets_together
        self._waiting: dict[str, P] = {}
        self._members = set(standing.members)
        self._is_gathered = needed is None or standing.most_open >= needed

    @property
    def needed(self) -> int:
        """How many gradients make the next step."""
        if self._wanted is None:
            return max(1, len(self._members))
        if self._shrinks and self._is_gathered:
            return max(1, min(self._wanted, len(self._members)))
        return self._wanted

    def offer(self, push: P, parameters_version: int) -> Step[P] | Wait | Drop:
        """Keep the push until the barrier is complete; drop one of older parameters."""
        if push.version is not None and push.version < parameters_version:
            return Drop("dropped_late")
        self._waiting[push.worker] = push
        return self.due() or Wait()

    @property
    def waiting(self) -> Sequence[P]:
        """In the order of reduction: the bytewise order of the workers' names."""
        return [self._waiting[name] for name in sorted(self._waiting, key=str.encode)]

    def due(self) -> Step[P] | None:
        """Return the step that completes the barrier."""
        if len(self._waiting) < self.needed:
            return None
        step = Step(tuple(self.waiting))
        self._waiting.clear()
        return step

    def join(self, worker: str, clock: int = 0) -> None:
        """Wait for the worker from now on, unless as many as are needed are waited for already."""
        self._forget(worker)
        self._members.add(worker)
        if self._wanted is not None:
            self._is_gathered = self._is_gathered or len(self._members) >= self._wanted

    def leave(self, worker: str) -> None:
        """Wait for one worker less."""
        self._forget(worker)
        self._members.discard(worker)
        if self._wanted is not None:
            self._is_gathered = self._is_gathered and bool(self._members)

    def _forget(self, worker: str) -> None:
        if self._waiting.pop(worker, None) is not None and self._forgets_together:
            self._waiting.clear()
