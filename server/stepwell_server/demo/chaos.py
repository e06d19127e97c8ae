"""Chaos for the demo: workers are killed, stopped and added while the others train.

    kill      SIGKILL: nothing is said any more; the session ends with its lease
    add       one more worker, late
    stop      SIGSTOP for longer than a lease, then SIGCONT: its session has ended meanwhile
    restart   a new process under the name of one that was killed

What happens, to whom and how far into the training is a plan that depends on the seed alone. How
much of the training a lease takes depends on the machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from stepwell_server.demo.worker import Task

Kind: TypeAlias = Literal["kill", "add", "stop", "restart"]

LEASE_S = 2.0
STOP_S = 1.75 * LEASE_S
LEAST_WORKERS = 2
"""One has to go on when another is killed."""

KINDS: tuple[Kind, ...] = ("kill", "add", "stop", "restart", "kill", "add", "stop")
"""In the order in which they happen: somebody comes whenever somebody is gone for good."""

_FIRST, _LAST = 0.12, 0.8  # shares of the training; before and after it is left alone
_JITTER = 0.6  # of the time between two


@dataclass(frozen=True, slots=True)
class Blow:
    """One thing that is done to a worker.

    Attributes:
        at: When: a share of the training, 0..1.
        kind: What.
        worker: Whom.
    """

    at: float
    kind: Kind
    worker: str


@dataclass(frozen=True, slots=True)
class Deed:
    """A blow that was dealt, or "resume", the end of a stop, with the Unix time of it."""

    time: float
    kind: Kind | Literal["resume"]
    worker: str


class Victims(Protocol):
    """To whom it is done; see `processes.Workers`."""

    def add(self, task: Task) -> None:
        """Start one."""

    def kill(self, worker: str) -> None:
        """SIGKILL."""

    def suspend(self, worker: str) -> None:
        """SIGSTOP."""

    def resume(self, worker: str) -> None:
        """SIGCONT."""


def plan(seed: int, workers: int) -> list[Blow]:
    """Return what happens, in order; at any time one worker or more is left.

    Args:
        seed: The same gives the same plan.
        workers: How many begin, as `w0`, `w1`, ...; at least `LEAST_WORKERS`.
    """
    assert workers >= LEAST_WORKERS, "one has to go on when another is killed"
    random = np.random.default_rng((seed, workers))
    living, dead = [f"w{index}" for index in range(workers)], list[str]()
    blows: list[Blow] = []
    between = (_LAST - _FIRST) / len(KINDS)
    for place, kind in enumerate(KINDS):
        match kind:
            case "add":
                worker = f"w{workers + [blow.kind for blow in blows].count('add')}"
                living.append(worker)
            case "restart":
                worker = dead.pop(random.integers(len(dead)))
                living.append(worker)
            case "kill":
                worker = living.pop(random.integers(len(living)))
                dead.append(worker)
            case "stop":  # not who is only just coming, and has nothing to lose yet
                worker = living[random.integers(len(living) - 1)]
        at = _FIRST + between * (place + _JITTER * random.random())
        blows.append(Blow(round(at, 4), kind, worker))
    return blows


class Chaos:
    """Carries a plan out.

    Args:
        blows: In order.
        victims: Of it.
        task_of: Returns what a worker that comes is to do.
        stop_s: How long one is stopped.
        clock: Unix seconds.

    Attributes:
        deeds: What was done.
    """

    def __init__(
        self,
        blows: Sequence[Blow],
        victims: Victims,
        task_of: Callable[[str], Task],
        stop_s: float = STOP_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.deeds: list[Deed] = []
        self._left = list(blows)
        self._victims = victims
        self._task_of = task_of
        self._stop_s = stop_s
        self._clock = clock
        self._stopped: dict[str, float] = {}  # until when

    def go_on(self, progress: float) -> list[Deed]:
        """Do what is due, and return it.

        Args:
            progress: The share of the training that is done, 0..1.
        """
        now, before = self._clock(), len(self.deeds)
        for worker in [name for name, end in self._stopped.items() if end <= now]:
            self._resume(worker)
        while self._left and self._left[0].at <= progress:
            self._deal(self._left.pop(0))
        return self.deeds[before:]

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind of blow was dealt."""
        return dict(Counter(deed.kind for deed in self.deeds if deed.kind != "resume"))

    def _deal(self, blow: Blow) -> None:
        worker = blow.worker
        match blow.kind:
            case "kill":
                self._stopped.pop(worker, None)
                self._victims.kill(worker)
            case "stop":
                self._victims.suspend(worker)
                self._stopped[worker] = self._clock() + self._stop_s
            case "add" | "restart":
                self._victims.add(self._task_of(worker))
        self.deeds.append(Deed(self._clock(), blow.kind, worker))

    def _resume(self, worker: str) -> None:
        del self._stopped[worker]
        self._victims.resume(worker)
        self.deeds.append(Deed(self._clock(), "resume", worker))
