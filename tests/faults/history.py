"""The history checker: was every answer of a server right, however it was killed in between?

Worker w pushes `-onehot(w)` with plain SGD at learning rate 1, so the parameters *are* a vector
clock of the pushes that were applied, and every row of every tensor holds a copy of it. Each call
is recorded with its start, its end and its answer. Then, in O(n log n), with `key` the pair of
incarnation (in their order) and version:

    one key, one version      a push makes a version of its own; the same key, the same bytes
    real time                 a call that ended before another one began has no larger key; a push
                              has a larger key than all that ended before it began. So no pull is
                              stale, and none is from the future
    no torn pull              all rows of all tensors are equal
    sum                       sum(clock) = shares * (version - offset); the offset is 0 from the
                              creation on, and changes with a restore, by as much as that says
    counts                    clock[w] is at least the number of w's acknowledged pushes up to that
                              key, and at most that plus those of unknown outcome
    one push, one outcome     all answers to one (worker, epoch, sequence) say the same version, and
                              only one of them is not called a duplicate
    cuts                      history is cut only where it may be, only its tail is lost, and the
                              incarnation is another one then

Pure: no files, no clock. Under `Sync` of W workers a version has a share of each of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf

Clock = tuple[float, ...]


@dataclass(frozen=True)
class Push:
    """One call of a worker, until its outcome was known.

    Attributes:
        outcome: "applied", "none" (it has no effect, and will have none), or "unknown".
        version: That it made; None unless it was applied.
        is_duplicate: Whether the answer called it a repetition.
    """

    worker: str
    epoch: int
    sequence: int
    start: float
    end: float
    incarnation: str
    outcome: str
    version: int | None = None
    is_duplicate: bool = False

    @property
    def name(self) -> tuple[str, str, int, int]:
        """What all repetitions of one push have in common."""
        return self.incarnation, self.worker, self.epoch, self.sequence

    def __str__(self) -> str:
        return f"push {self.sequence} of {self.worker} in session {self.epoch}"


@dataclass(frozen=True)
class Pull:
    """One answered pull.

    Attributes:
        clocks: The different rows that were found in its tensors; of a whole pull there is one.
    """

    reader: str
    start: float
    end: float
    incarnation: str
    version: int
    clocks: tuple[Clock, ...]

    def __str__(self) -> str:
        return f"pull of {self.reader} at version {self.version} of {self.incarnation[:6]}"


@dataclass(frozen=True)
class Branch:
    """Where an incarnation began.

    Attributes:
        kind: "created", "restored" (an administrator did it), or "recovered" (after a crash, as a
            new incarnation).
        parent: The incarnation that it goes on from; None if it was created.
        cut: The last version of the parent that is in it.
        version: The first one of its own, if known; None for a restore whose answer was lost.
        at: When the crash was, on the clock of the calls; for "recovered".
    """

    incarnation: str
    kind: str
    parent: str | None = None
    cut: int = 0
    version: int | None = 0
    at: float = 0.0


@dataclass
class History:
    """All that was recorded of one model.

    Attributes:
        workers: By their place in the clock.
        branches: In the order in which they began.
        shares: Pushes that make one version.
    """

    workers: list[str]
    pushes: list[Push] = field(default_factory=list)
    pulls: list[Pull] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    shares: int = 1


@dataclass(frozen=True)
class Violation:
    """A promise that was not kept.

    Attributes:
        rule: "torn", "bytes", "sum", "lost", "surplus", "stale", "future", "version", "duplicate",
            "cut" or "tail".
        sentence: What was seen.
    """

    rule: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.sentence}"


def check(
    history: History, *, may_cut: bool = False, tail_s: float | None = None
) -> list[Violation]:
    """Return all violations.

    Args:
        history: Complete: it ends with a pull after the last push.
        may_cut: Whether a crash may take the history's tail, as under `memory`, or with `everysec`
            when the power fails.
        tail_s: What was acknowledged longer than this before a crash must still be there.
    """
    return list(_Checker(history, may_cut, tail_s).violations())


class _Checker:
    def __init__(self, history: History, may_cut: bool, tail_s: float | None) -> None:
        history = replace(history, pulls=[_placed(pull, history) for pull in history.pulls])
        self._history = history
        self._may_cut = may_cut
        self._tail_s = tail_s
        self._branches = {branch.incarnation: branch for branch in history.branches}
        self._rank = {branch.incarnation: n for n, branch in enumerate(history.branches)}
        self._place = {worker: n for n, worker in enumerate(history.workers)}
        self._firsts = _firsts(history.pushes)
        self._applied: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._unknown: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for push in self._firsts:
            if push.version is not None:
                self._applied[push.incarnation, push.worker].append(push.version)
            elif push.outcome == "unknown":
                self._unknown[push.incarnation, push.worker].append(push.start)
        for numbers in (*self._applied.values(), *self._unknown.values()):
            numbers.sort()
        self._inherited: dict[tuple[str, str], tuple[int, int]] = {}

    def violations(self) -> Iterator[Violation]:
        strangers = {
            call.incarnation
            for call in (*self._history.pushes, *self._history.pulls)
            if call.incarnation not in self._branches
        }
        for incarnation in sorted(strangers):
            yield Violation("cut", f"nobody was told how incarnation {incarnation} began")
        if strangers:
            return
        yield from self._cuts()
        yield from self._versions()
        yield from self._repetitions()
        yield from self._pulls()
        yield from self._real_time()

    # History

    def _cuts(self) -> Iterator[Violation]:
        for branch in self._history.branches:
            if branch.kind != "recovered":
                continue
            if not self._may_cut:
                yield Violation(
                    "cut",
                    f"a crash cut the history at version {branch.cut}, which was not to be",
                )
            if self._tail_s is None:
                continue
            for push in self._firsts:
                is_lost = push.incarnation == branch.parent and (push.version or 0) > branch.cut
                if is_lost and push.end < branch.at - self._tail_s:
                    yield Violation(
                        "tail",
                        f"{push} was acknowledged {branch.at - push.end:.1f} s before the crash, "
                        f"and is not among the {branch.cut} versions that survived",
                    )

    def _versions(self) -> Iterator[Violation]:
        made: dict[tuple[str, int], dict[str, Push]] = defaultdict(dict)
        for push in self._firsts:
            if push.version is None:
                continue
            makers = made[push.incarnation, push.version]
            other = makers.get(push.worker) or (
                self._is_full(makers) and next(iter(makers.values()))
            )
            if other:
                yield Violation("version", f"{push} and {other} both made version {push.version}")
            makers[push.worker] = push

    def _is_full(self, makers: dict[str, Push]) -> bool:
        return len(makers) >= self._history.shares

    def _repetitions(self) -> Iterator[Violation]:
        answers: dict[tuple[str, str, int, int], list[Push]] = defaultdict(list)
        for push in self._history.pushes:
            if push.version is not None:
                answers[push.name].append(push)
        for same in answers.values():
            versions = sorted({push.version for push in same if push.version is not None})
            if len(versions) > 1:
                yield Violation("duplicate", f"{same[0]} was told different versions: {versions}")
            if sum(not push.is_duplicate for push in same) > 1:
                yield Violation("duplicate", f"{same[0]} was answered twice as if it were new")

    # Pulls

    def _pulls(self) -> Iterator[Violation]:
        seen: dict[tuple[str, int], Pull] = {}
        offsets: dict[str, float] = {}
        for pull in sorted(self._history.pulls, key=lambda pull: pull.end):
            if len(pull.clocks) != 1:
                yield Violation("torn", f"{pull} has different rows: {pull.clocks[:3]}")
                continue
            (clock,) = pull.clocks
            first = seen.setdefault((pull.incarnation, pull.version), pull)
            if first.clocks != pull.clocks:
                yield Violation("bytes", f"{pull} has {clock}, and {first} had {first.clocks[0]}")
            offset = pull.version - sum(clock) / self._history.shares
            known = self._offset(pull.incarnation)
            expected = offsets.setdefault(pull.incarnation, offset if known is None else known)
            if offset != expected:
                yield Violation(
                    "sum",
                    f"{pull} has {clock}: {sum(clock)} pushes, in {pull.version - expected} "
                    f"versions of {self._history.shares} each",
                )
            yield from self._counts(pull, clock)

    def _offset(self, incarnation: str) -> float | None:
        """Return how many versions of an incarnation were made by something else than a push."""
        branch = self._branches[incarnation]
        if branch.parent is None:
            return 0
        before = self._offset(branch.parent)
        if before is None or branch.kind == "recovered":
            return before
        return None if branch.version is None else branch.version - (branch.cut - before)

    def _counts(self, pull: Pull, clock: Clock) -> Iterator[Violation]:
        for worker, place in self._place.items():
            least, most = self._bounds(pull.incarnation, worker, pull.version, pull.end)
            if clock[place] < least:
                yield Violation(
                    "lost", f"{pull} has {clock[place]:g} pushes of {worker}, acknowledged: {least}"
                )
            elif clock[place] > most:
                yield Violation(
                    "surplus", f"{pull} has {clock[place]:g} pushes of {worker}, at most: {most}"
                )

    def _bounds(self, incarnation: str, worker: str, version: int, end: float) -> tuple[int, int]:
        """Return how many pushes of a worker may be in a version, seen at a time."""
        key = (incarnation, worker)
        least, most = self._from_parent(incarnation, worker)
        acknowledged = bisect_right(self._applied[key], version)
        attempted = bisect_left(self._unknown[key], end)
        return least + acknowledged, most + acknowledged + attempted

    def _from_parent(self, incarnation: str, worker: str) -> tuple[int, int]:
        key, branch = (incarnation, worker), self._branches[incarnation]
        if key not in self._inherited:
            self._inherited[key] = (
                (0, 0)
                if branch.parent is None
                else self._bounds(branch.parent, worker, branch.cut, inf)
            )
        return self._inherited[key]

    # Time

    def _real_time(self) -> Iterator[Violation]:
        calls: list[Push | Pull] = [*self._history.pulls]
        calls += [push for push in self._firsts if push.version is not None]
        ended = sorted(calls, key=lambda call: call.end)
        newest, n = ended[0] if ended else None, 0
        for call in sorted(calls, key=lambda call: call.start):
            while n < len(ended) and ended[n].end < call.start:
                newest = max(newest, ended[n], key=self._key) if n else ended[n]
                n += 1
            if not n or newest is None:
                continue
            if self._key(call) < self._key(newest):
                yield Violation(
                    "stale",
                    f"{call} got version {call.version} of {call.incarnation[:6]}, "
                    f"{(call.start - newest.end) * 1000:.0f} ms after {newest} had ended with "
                    f"{newest.version} of {newest.incarnation[:6]}",
                )
            elif isinstance(call, Push) and self._key(call) == self._key(newest):
                yield Violation(
                    "future", f"{newest} had version {newest.version} before {call} made it"
                )

    def _key(self, call: Push | Pull) -> tuple[int, int]:
        assert call.version is not None
        return self._rank[call.incarnation], call.version


def _placed(pull: Pull, history: History) -> Pull:
    """Return a pull with the incarnation that its version is of.

    While history is being cut a server may say the version after the cut with the incarnation
    before it (`Readers.hold`). Versions do not go back at a restore, so it is known which it is.
    """
    names = [branch.incarnation for branch in history.branches]
    later = names.index(pull.incarnation) + 1 if pull.incarnation in names else len(names)
    for branch in history.branches[later:]:
        if branch.kind != "restored" or branch.version is None or pull.version < branch.version:
            break
        pull = replace(pull, incarnation=branch.incarnation)
    return pull


def _firsts(pushes: list[Push]) -> list[Push]:
    """Return each push once: its first call, with what its answers say of it."""
    found: dict[tuple[str, str, int, int], Push] = {}
    for push in sorted(pushes, key=lambda push: push.start):
        first = found.setdefault(push.name, push)
        if first.outcome == "unknown" and push.outcome != "unknown":
            found[push.name] = Push(
                *push.name[1:], first.start, push.end, push.incarnation, push.outcome, push.version
            )
    return list(found.values())
