"""What is counted while the server works, in plain numbers; `metrics.py` says it to Prometheus.

A push of a small model takes some 50 us, and a look-up of a labelled counter in a metrics library,
with its lock, about one. So what is on that way adds to numbers of its own, each with one writer
at a time, and the library sees them when it is asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence
from math import ceil
from time import perf_counter
from typing import Any

from stepwell_core.push import Push, Staged
from stepwell_core.session import Result

# fmt: off
APPLY_S: Sequence[float] = (
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5,
    1.0, 2.5,
)
"""From a step of some KB to one of some GB."""

STALENESS: Sequence[float] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""In versions; with `n` equal workers it is about `n - 1`."""

CHECKPOINT_S: Sequence[float] = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)

REQUEST_S: Sequence[float] = (
    1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
    30.0, 60.0,
)
"""The last ones are those of pulls and pushes that wait for others."""
# fmt: on


class Histogram:
    """How many values lay where.

    One thread writes at a time. Another may read: what it sees lacks the newest value, or has it in
    the count alone.

    Args:
        bounds: Upper bounds of the buckets, rising; a value belongs to the first that is not less.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is of those above all bounds
        self.sum = 0.0

    def note(self, value: float) -> None:
        """Count a value; O(log buckets)."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def add(self, other: Histogram) -> None:
        """Take the values of another one of the same bounds, too."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def copy(self) -> Histogram:
        """Return what it is now, for another thread."""
        copied = Histogram(self.bounds)
        copied.counts, copied.sum = self.counts.copy(), self.sum
        return copied


NO_EFFECT = frozenset({"dropped_stale", "dropped_late", "skipped_nonfinite"})
"""Outcomes of pushes that changed nothing."""

STALENESSES = 256
"""Of a worker, the newest: enough for a 95th percentile."""

MOST_WORKERS = 20_000
"""Who is counted, the newest: as many as a ledger has sessions."""


class WorkerTally:
    """What is counted of one worker's pushes, over all of its sessions.

    Attributes:
        received_bytes: Their payloads. Written on the event loop.
        drops: Those that had no effect. Written by the lane.
        stalenesses: Of the newest, in versions. Written by the lane.
    """

    __slots__ = ("drops", "received_bytes", "stalenesses")

    def __init__(self) -> None:
        self.received_bytes = 0
        self.drops = 0
        self.stalenesses: deque[int] = deque(maxlen=STALENESSES)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; the staleness is that of the newest push, None before the first."""
        newest = list(self.stalenesses)
        rising = sorted(newest)
        return {
            "received_bytes": self.received_bytes,
            "drops": self.drops,
            "staleness": newest[-1] if newest else None,
            "staleness_p95": rising[ceil(0.95 * len(rising)) - 1] if rising else None,
        }


class ModelTally:
    """What is counted of one model's pushes and pulls, from when the server opened it.

    Attributes:
        outcomes: Of pushes, each when it was settled. Written by the lane.
        apply_s: Seconds that changes by pushes took. Written by the lane.
        staleness: Of the pushes that were settled, in versions. Written by the lane.
        disagreements: Steps of several pushes that came with different values of a hyperparameter,
            of which the first worker's counted. Written by the lane.
        duplicates: Repetitions that got the answer of the first. Written on the event loop.
        received_bytes: Payloads of pushes, over the wire or in memory. Written on the event loop.
        pulls: Versions that were held for a reader. Written on the event loop.
        workers: The same of each worker, by name.
    """

    def __init__(self) -> None:
        self.outcomes: defaultdict[str, int] = defaultdict(int)
        self.apply_s = Histogram(APPLY_S)
        self.staleness = Histogram(STALENESS)
        self.disagreements = 0
        self.duplicates = 0
        self.received_bytes = 0
        self.pulls = 0
        self.workers: dict[str, WorkerTally] = {}

    def of_worker(self, worker: str) -> WorkerTally:
        """Return what is counted of a worker; on any thread."""
        found = self.workers.get(worker)
        if found is None:
            found = self.workers.setdefault(worker, WorkerTally())
            for oldest in list(self.workers)[:-MOST_WORKERS]:  # a copy: two threads come here
                self.workers.pop(oldest, None)
        return found

    def received(self, worker: str, nbytes: int) -> None:
        """Count the payload of a push; on the event loop."""
        self.received_bytes += nbytes
        self.of_worker(worker).received_bytes += nbytes

    def committed(
        self, staged: Staged, results: Sequence[tuple[Push, Result]], began: float
    ) -> None:
        """Count a change that was made, and the pushes in it; the lane's.

        Args:
            staged: The change.
            results: Of the pushes in it.
            began: When its making began, of `time.perf_counter`.
        """
        if staged.gradient is not None:
            self.apply_s.note(perf_counter() - began)
        if len(results) > 1 and staged.scalars is not None:
            first = results[0][0].hyperparameters
            self.disagreements += any(push.hyperparameters != first for push, _ in results)
        for push, result in results:
            self.outcomes[result.outcome] += 1
            self.staleness.note(result.staleness)
            worker = self.of_worker(push.worker)
            worker.drops += result.outcome in NO_EFFECT
            worker.stalenesses.append(result.staleness)


class CheckpointTally:
    """What is counted of one model's checkpoints; written by who writes them, under their lock.

    Attributes:
        seconds: That the whole ones took to be written and read back.
        failures: How many could not be written.
    """

    def __init__(self) -> None:
        self.seconds = Histogram(CHECKPOINT_S)
        self.failures = 0


class RequestTally:
    """What is counted of requests. Written and read on the event loop.

    Attributes:
        seconds: How long they took, by method, route and status.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, int], Histogram] = {}

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that ended."""
        key = method, route, status
        histogram = self.seconds.get(key)
        if histogram is None:
            histogram = self.seconds[key] = Histogram(REQUEST_S)
        histogram.note(seconds)
