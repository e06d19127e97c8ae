"""The history checker: from what workers asked and were answered, was anything lost or done twice?

Let worker w push `-onehot(w)` with SGD at learning rate 1. The parameters then *are* a vector clock
of the pushes that were applied, in every row of every tensor. Every call is recorded with its
start, its end and its answer, by many processes under faults, on one clock. From these alone:

    once            a push that was acknowledged has one version, and no other push has it
    real time       who was answered at version v, and asks again, gets no older one
    neither stale nor from the future
                    a pull counts each worker's acknowledged pushes from before it, and none that
                    was not begun when it ended
    the clock's sum is the version; the same version is the same clock
    not torn        all rows of all tensors show one clock
    nothing lost    in the end each worker's count lies between acknowledged and attempted
    told            if history was cut, the incarnation is another one; `may_be_cut` says whether
                    that is allowed at all

In synchronous mode worker w of W pushes `-W * onehot(w)`, so that the mean of all makes each entry
one larger: the clock is the version in every entry.

All checks are O(n log n) in the number of calls.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """One call of a worker.

    Attributes:
        worker: Its index.
        kind: "push" or "pull".
        start: When it was asked, in seconds of a clock that all share.
        end: When it was answered; infinite if it never was.
        incarnation: Of the history it belongs to.
        number: Of the push, counted by its worker; -1 for a pull.
        version: In the answer; None if there was none.
        outcome: Of a push; None if it is not known.
        is_duplicate: Whether the answer said that the push had its effect before.
        clocks: The different rows that a pull saw, one if it is not torn.
    """

    worker: int
    kind: str
    start: float
    end: float
    incarnation: str
    number: int = -1
    version: int | None = None
    outcome: str | None = None
    is_duplicate: bool = False
    clocks: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Event:
        """Return the event that `vars` of one described."""
        return cls(**{**value, "clocks": tuple(tuple(row) for row in value["clocks"])})


@dataclass(frozen=True)
class Violation:
    """Something that was promised and did not hold."""

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


def check(
    events: Iterable[Event], workers: int, *, is_sync: bool = False, may_be_cut: bool = False
) -> list[Violation]:
    """Return what does not hold in a history.

    Args:
        events: In any order. The last pull is made when all is over.
        workers: How many there are; the length of a clock.
        is_sync: Whether a step needs a push of each.
        may_be_cut: Whether history may go back, if that is told.
    """
    by_incarnation: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.start):
        by_incarnation[event.incarnation].append(event)
    found: list[Violation] = []
    if len(by_incarnation) > 1 and not may_be_cut:
        found.append(Violation("told", f"history was cut {len(by_incarnation) - 1} times"))
    for history in by_incarnation.values():
        one = _History(history, workers, is_sync)
        found.extend(one.violations())
    return found


class _History:
    """The calls of one incarnation, by their start."""

    def __init__(self, events: Sequence[Event], workers: int, is_sync: bool) -> None:
        self.events = events
        self.workers = workers
        self.is_sync = is_sync
        self.pushes = [event for event in events if event.kind == "push"]
        self.applied = [event for event in self.pushes if event.outcome == "applied"]
        self.pulls = [event for event in events if event.kind == "pull" and event.clocks]

    def violations(self) -> Iterator[Violation]:
        yield from self._once()
        yield from self._in_real_time()
        yield from self._whole()
        yield from self._counted()

    def _once(self) -> Iterator[Violation]:
        versions: dict[tuple[int, int], set[int]] = defaultdict(set)
        for event in self.applied:
            assert event.version is not None
            versions[event.worker, event.number].add(event.version)
        takers: dict[tuple[int, int], tuple[int, int]] = {}
        for key, found in versions.items():
            if len(found) > 1:
                yield Violation("once", f"push {key} was answered with versions {sorted(found)}")
            for version in found:
                place = (version, key[0]) if self.is_sync else (version, 0)
                other = takers.setdefault(place, key)
                if other != key:
                    yield Violation("once", f"pushes {other} and {key} both made {version}")

    def _in_real_time(self) -> Iterator[Violation]:
        answered = [event for event in self.events if event.version is not None]
        by_end = sorted(answered, key=lambda event: event.end)
        ends = [event.end for event in by_end]
        newest = list(itertools.accumulate((event.version or 0 for event in by_end), max))
        for event in answered:
            before = bisect.bisect_left(ends, event.start)
            if not before or event.is_duplicate:
                continue
            known, version = newest[before - 1], event.version or 0
            is_late = version < known or (
                event.outcome == "applied" and version == known and not self.is_sync
            )
            if is_late:
                yield Violation(
                    "real time",
                    f"{event.kind} of worker {event.worker} at {event.start:.3f} got version "
                    f"{version}, after version {known} had been answered",
                )

    def _whole(self) -> Iterator[Violation]:
        seen: dict[int, tuple[int, ...]] = {}
        for pull in self.pulls:
            assert pull.version is not None
            if len(pull.clocks) > 1:
                yield Violation("torn", f"version {pull.version} shows {pull.clocks[:3]}")
                continue
            (clock,) = pull.clocks
            total = clock[0] if self.is_sync else sum(clock)
            if total != pull.version or (self.is_sync and len(set(clock)) > 1):
                yield Violation("sum", f"version {pull.version} shows {clock}")
            if seen.setdefault(pull.version, clock) != clock:
                yield Violation(
                    "same", f"version {pull.version} was {seen[pull.version]}, then {clock}"
                )

    def _counted(self) -> Iterator[Violation]:
        for worker in range(self.workers):
            own = [event for event in self.pushes if event.worker == worker]
            done = sorted(e.end for e in own if e.outcome == "applied")
            firsts: dict[int, float] = {}
            for event in own:
                firsts[event.number] = min(event.start, firsts.get(event.number, event.start))
            begun = sorted(firsts.values())
            for pull in self.pulls:
                count = pull.clocks[0][worker]
                least = bisect.bisect_left(done, pull.start)
                most = bisect.bisect_right(begun, pull.end)
                if not least <= count <= most:
                    yield Violation(
                        "stale" if count < least else "future",
                        f"a pull at {pull.start:.3f} counts {count} pushes of worker {worker}: "
                        f"{least} were acknowledged before it, {most} begun before its end",
                    )
