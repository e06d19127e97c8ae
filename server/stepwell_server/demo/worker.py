"""One worker of the demo: pull, compute a gradient, push, again.

It says on stdout what it does, one JSON object a push, for whoever started it.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TextIO

import stepwell
from stepwell.errors import ModelNotFound

from stepwell_server.demo import digits, network

WAIT_FOR_MODEL_S = 60.0
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Task:
    """What a worker is to do.

    Attributes:
        model: Name of the model.
        worker: Name of the worker.
        index: Which share of the examples is the worker's; None takes a number from the server.
        steps: Pushes to make.
        batch_size: Examples a push.
        seed: Of the whole run.
        until: Version of the model at which to end, however many pushes that takes; None goes by
            `steps`.
    """

    model: str
    worker: str
    index: int | None
    steps: int
    batch_size: int
    seed: int
    until: int | None = None

    def is_done(self, step: int, version: int) -> bool:
        """Return whether nothing is left to do after so many pushes, at a version of the model."""
        return step >= self.steps if self.until is None else version >= self.until


@dataclass(frozen=True)
class Record:
    """One push, as its worker saw it.

    Attributes:
        worker: Who pushed.
        step: Counted from 0.
        version: Of the parameters after it.
        loss: Of the batch, before the push.
        began: When the push began, in seconds of the monotonic clock, which all processes share.
        ended: When it was answered.
    """

    worker: str
    step: int
    version: int
    loss: float
    began: float
    ended: float


def train(client: stepwell.Client, task: Task, report: Callable[[Record], None]) -> None:
    """Make all pushes of a worker.

    Args:
        client: Connected to the server that has the model.
        task: What to do.
        report: Called after each push.
    """
    images = digits.load_digits_split()
    model = _wait_for_model(client, task.model)
    with model.worker(task.worker) as worker:
        index = task.index if task.index is not None else worker.epoch - 1
        parameters = worker.pull()
        for step in itertools.count():
            if task.is_done(step, parameters.version):
                return
            batch = digits.batch(images, task.seed, index, step, task.batch_size)
            loss, gradients = network.loss_and_gradients(parameters, *batch)
            began = time.monotonic()
            parameters = worker.push_pull(gradients, metrics={"loss": loss})
            ended = time.monotonic()
            report(Record(task.worker, step, parameters.version, loss, began, ended))


def write_to(stream: TextIO) -> Callable[[Record], None]:
    """Return a report that writes one line of JSON a push."""

    def report(record: Record) -> None:
        stream.write(json.dumps(asdict(record)) + "\n")
        stream.flush()

    return report


def _wait_for_model(client: stepwell.Client, name: str) -> stepwell.Model:
    """Open the model; whoever creates it may be a little later."""
    deadline = time.monotonic() + WAIT_FOR_MODEL_S
    while True:
        try:
            return client.model(name)
        except ModelNotFound:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)
