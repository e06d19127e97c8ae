"""Events for tests, and clocks that stand where they are put."""

from __future__ import annotations

from typing import Any

from stepwell_server.history.events import Entry, Joined, Step


class Clock:
    """A clock that goes when it is told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def step(version: int, loss: float | None = None, **fields: Any) -> Step:
    """Return a step of one worker."""
    metrics = {} if loss is None else {"w0": {"loss": loss}}
    values = {
        "outcome": "applied",
        "workers": ("w0",),
        "learning_rate": 0.5,
        "staleness_max": 0,
        "staleness_mean": 0.0,
        "metrics": metrics,
    }
    return Step(version, **{**values, **fields})


def joined(version: int = 0, worker: str = "w0") -> Joined:
    """Return that a worker came."""
    return Joined(version, worker, 1)


def entry(number: int, event: Any = None, time: float | None = None) -> Entry:
    """Return an entry; a step of the version of its number unless told otherwise."""
    return Entry(number, float(number) if time is None else time, event or step(number))
