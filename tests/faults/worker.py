"""A worker process that pushes its tick of the vector clock, pulls, and writes down every call.

python -m tests.faults.worker '{"url": ..., "model": ..., "index": 0, "workers": 3, ...}'

It ends when its stdin does. Each line of stdout is one `Event`.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import stepwell
from stepwell.errors import StepwellError

from tests.faults.history import Event

SHAPES = {"a": (1,), "b": (3,), "c": (400,)}
"""Rows of each tensor; every row of all of them is one clock."""


@dataclass(frozen=True)
class Task:
    """What a worker does.

    Attributes:
        url: Of the server, or of a proxy before it.
        model: Its name.
        index: Of this worker.
        workers: How many there are.
        transport: "http" or "auto".
        is_sync: Whether a step needs all of them.
        seed: Of what it does when.
        pause_s: Between two calls, on the average.
    """

    url: str
    model: str
    index: int
    workers: int
    transport: str = "http"
    is_sync: bool = False
    seed: int = 0
    pause_s: float = 0.0

    @property
    def name(self) -> str:
        """Of the worker."""
        return f"w{self.index}"


def parameters(workers: int) -> dict[str, np.ndarray]:
    """Return a clock at zero in every row."""
    return {name: np.zeros((*rows, workers), np.float32) for name, rows in SHAPES.items()}


def tick(task: Task) -> dict[str, np.ndarray]:
    """Return the gradient that makes this worker's entry of the clock one larger."""
    gradient = parameters(task.workers)
    for array in gradient.values():
        array[:, task.index] = -float(task.workers if task.is_sync else 1)
    return gradient


def clocks_in(pulled: Any) -> tuple[tuple[int, ...], ...]:
    """Return the different rows of all tensors."""
    rows = np.concatenate([np.asarray(pulled[name]) for name in SHAPES])
    return tuple(tuple(int(n) for n in row) for row in np.unique(rows, axis=0))


def work(task: Task, is_over: Any) -> Iterator[Event]:
    """Push and pull until it is over; yield every call."""
    rng = random.Random(f"{task.seed}/{task.index}")
    gradient, number = tick(task), 0
    timeout = stepwell.Timeout(connect_s=60, read_s=10, retry_s=120)
    with stepwell.Client(task.url, transport=task.transport, timeout=timeout) as client:
        model = client.model(task.model)
        worker = model.worker(task.name, on_stale="repull")
        worker.open()
        while not is_over():
            if task.pause_s:
                time.sleep(rng.expovariate(1 / task.pause_s))
            if rng.random() < 0.25:
                yield pull(task, worker)
            else:
                yield push(task, worker, gradient, number)
                number += 1


def push(task: Task, worker: Any, gradient: Any, number: int) -> Event:
    """Push and say what became of it; one without an answer is asked about until there is one."""
    incarnation = worker._session.incarnation
    start, result = time.monotonic(), None
    try:
        result = worker.push(gradient)
    except StepwellError:
        for _ in range(20):
            try:
                result = worker.resolve()
            except StepwellError:
                time.sleep(0.2)
            else:
                break
    return Event(
        task.index,
        "push",
        start,
        time.monotonic(),
        incarnation,
        number,
        None if result is None or result.outcome == "dropped_stale" else result.version,
        None if result is None else result.outcome,
        result is not None and result.duplicate,
    )


def pull(task: Task, worker: Any) -> Event:
    """Pull and say what was seen."""
    start = time.monotonic()
    try:
        pulled = worker.pull()
    except StepwellError:
        return Event(task.index, "pull", start, float("inf"), worker._session.incarnation)
    end = time.monotonic()
    return Event(
        task.index,
        "pull",
        start,
        end,
        pulled.incarnation,
        version=pulled.version,
        clocks=clocks_in(pulled),
    )


def main() -> None:
    """Work until stdin has something to read, or ends."""
    task = Task(**json.loads(sys.argv[1]))

    def is_over() -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])

    for event in work(task, is_over):
        print(json.dumps(vars(event)), flush=True)


if __name__ == "__main__":
    main()
