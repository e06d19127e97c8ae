"""A worker process that pushes its clock and pulls everybody's, until it is told to stop.

    python -m tests.faults.workload '{"url": ..., "model": ..., "worker": ..., ...}'

It uses the client library as any worker does, and records what it was answered. On its standard
input come lines: `stop` ends it at once, `stop 120` when it has reached that version. So all
workers of a synchronous model end with the same step.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import stepwell
import stepwell.retry
from stepwell import calls
from stepwell.retry import Timeout, repeatedly
from stepwell_core.errors import StaleIncarnation, StepwellError

from tests.faults.history import Pull, Push
from tests.faults.recording import Recorder, clocks_in

SHAPES = {"bias": (), "layer/kernel": (33,), "layer/weights": (500,)}
"""Of the tensors, without their last dimension: it is the clock."""


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Attributes:
        place: Of the worker in the clock.
        step: What its entry of a gradient is: -1 makes its entry of the clock larger by one.
        is_sync: Whether each push is to follow a pull.
        repeats: How often, from 0 to 1, a push that was answered is sent once more.
        transport: See `stepwell.Client`.
        on_stale: See `stepwell.Model.worker`.
        large_rows: More rows of a tensor, so that payloads go other ways.
    """

    url: str
    model: str
    workers: tuple[str, ...]
    place: int
    record: str
    seed: int
    step: float = -1.0
    is_sync: bool = False
    repeats: float = 0.1
    transport: str = "http"
    on_stale: str = "raise"
    large_rows: int = 0

    @property
    def worker(self) -> str:
        """The worker's name."""
        return self.workers[self.place]

    def to_json(self) -> str:
        """Return it as the program takes it."""
        return json.dumps(asdict(self))


def zeros(workers: int, large_rows: int = 0) -> dict[str, np.ndarray]:
    """Return the parameters of a model that nobody has pushed to."""
    shapes = {**SHAPES, **({"large": (large_rows,)} if large_rows else {})}
    return {name: np.zeros((*shape, workers), np.float32) for name, shape in shapes.items()}


class Stop:
    """What standard input says."""

    def __init__(self) -> None:
        self.is_now = False
        self.version: int | None = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            _, _, version = line.strip().partition(" ")
            if not version:
                break
            self.version = int(version)
        self.is_now = True

    def reached(self, version: int | None) -> bool:
        """Return whether it is time, for a worker that has seen a version."""
        is_there = self.version is not None and version is not None and version >= self.version
        return self.is_now or is_there


class ClockWorker:
    """One worker; see the module.

    Args:
        task: What to do.
        stop: When to end.
    """

    def __init__(self, task: Task, stop: Stop) -> None:
        self._task = task
        self._stop = stop
        self._rng = random.Random(f"{task.seed}:{task.worker}")
        self._recorder = Recorder(Path(task.record))
        self._gradients = zeros(len(task.workers), task.large_rows)
        for gradient in self._gradients.values():
            gradient[..., task.place] = task.step
        timeout = Timeout(connect_s=5.0, read_s=25.0, retry_s=5.0)
        self._client = stepwell.Client(task.url, timeout=timeout, transport=task.transport)
        self._version: int | None = None

    def run(self) -> None:
        """Work until it is time to stop."""
        model = self._insist("open", lambda: self._client.model(self._task.model))
        worker = model.worker(self._task.worker, on_stale=self._task.on_stale)
        self._insist("open", worker.open)
        print("open", flush=True)
        while not self._stop.reached(self._version):
            if self._task.is_sync or self._rng.random() < 0.4:
                self._insist("pull", lambda: self._pull(worker))
            if not self._stop.reached(self._version):
                self._push(worker)
        worker.close()
        self._recorder.close()

    def _insist(self, operation: str, call: Any) -> Any:
        """Make a harmless call until it is answered."""
        while True:
            try:
                return call()
            except StepwellError as error:
                self._recorder.error(operation, error.code)
                if self._stop.is_now:
                    raise

    def _pull(self, worker: Any) -> None:
        start = time.monotonic()
        if self._task.transport == "auto" and self._rng.random() < 0.3:
            with worker.view() as parameters:  # where the server keeps them
                clocks = clocks_in(parameters.values())
            pulled = parameters
        else:
            pulled = worker.pull()
            clocks = clocks_in(pulled.values())
        end = time.monotonic()
        self._version = pulled.version
        name = self._task.worker
        self._recorder.pull(Pull(name, start, end, pulled.incarnation, pulled.version, clocks))

    def _push(self, worker: Any) -> None:
        session = worker._session
        start, incarnation = time.monotonic(), session.incarnation
        begun = Push(
            worker.name, session.epoch, session.sequence, start, start, incarnation, "unknown"
        )
        call = self._recorder.begin(begun)
        try:
            result = worker.push(self._gradients)
        except StaleIncarnation as error:
            self._recorder.error("push", error.code)
            self._insist("open", worker.open)  # what became of the push, nobody can say now
            return
        except StepwellError as error:
            self._recorder.error("push", error.code)
            result = self._resolved(worker)
            if result is None:
                if self._model_is_of(incarnation):
                    self._end(call, begun, "none")
                return
        if result.outcome == "dropped_stale":
            return  # it has no effect in the new history; in the old one, nobody can say
        is_applied = result.outcome == "applied"
        self._version = result.version
        pushed = replace(begun, epoch=session.epoch, sequence=session.sequence - 1)
        if worker.name != begun.worker or pushed.epoch != begun.epoch:
            pushed = replace(pushed, sequence=max(pushed.sequence, 0))
        pushed = self._end(
            call,
            pushed,
            "applied" if is_applied else "none",
            result.version if is_applied else None,
            result.duplicate,
        )
        if is_applied and self._rng.random() < self._task.repeats:
            self._repeat(worker, pushed)

    def _resolved(self, worker: Any) -> Any:
        """Return what became of a push without an answer; None if it has no effect, as it seems."""
        while not self._stop.is_now:
            try:
                return worker.resolve()
            except StaleIncarnation as error:
                self._recorder.error("resolve", error.code)
                self._insist("open", worker.open)
                return None
            except StepwellError as error:
                self._recorder.error("resolve", error.code)
        return None

    def _model_is_of(self, incarnation: str) -> bool:
        model = self._insist("describe", lambda: self._client.model(self._task.model))
        said = self._insist("describe", model.describe)
        return bool(said["incarnation"] == incarnation)

    def _end(
        self,
        call: int,
        push: Push,
        outcome: str,
        version: int | None = None,
        is_duplicate: bool = False,
    ) -> Push:
        ended = replace(
            push,
            end=time.monotonic(),
            outcome=outcome,
            version=version,
            is_duplicate=is_duplicate,
        )
        self._recorder.end(call, ended)
        return ended

    def _repeat(self, worker: Any, push: Push) -> None:
        """Send a push that was answered once more, as a network may."""
        session = worker._session
        header = {
            "worker": push.worker,
            "incarnation": push.incarnation,
            "epoch": push.epoch,
            "sequence": push.sequence,
            "version": None,
            "weight": 1.0,
            "loss_scale": None,
            "hyperparameters": {},
            "metrics": {},
        }
        call = calls.push(session.model, session.layout, self._gradients, header, pulls=False)
        start = time.monotonic()
        try:
            answer = worker._driver.run(repeatedly(call, session._patience))
            result = calls.result_of(answer)
        except StepwellError as error:
            self._recorder.error("repeat", error.code)
            return
        again = replace(push, start=start)
        outcome = "applied" if result.outcome == "applied" else result.outcome
        noted = self._recorder.begin(again)
        self._end(noted, again, outcome, result.version, result.duplicate)


def main() -> None:
    """Be one worker."""
    values = json.loads(sys.argv[1])
    stepwell.retry.LONGEST_PAUSE_S = 0.1  # so that more happens between two kills
    task = Task(**{**values, "workers": tuple(values["workers"])})
    ClockWorker(task, Stop()).run()


if __name__ == "__main__":
    main()
