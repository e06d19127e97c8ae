"""Ours, as every suite uses it: a worker through the public client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import stepwell

from benchmarks import adam, resident
from benchmarks.server import Server
from benchmarks.shapes import Shapes

TENSOR = "w"
"""The name of the tensor of a model that has one."""


@contextlib.contextmanager
def working(
    url: str,
    parameters: Mapping[str, Any],
    *,
    model: str,
    name: str = "worker",
    transport: str = "http",
    **options: Any,
) -> Iterator[stepwell.Worker]:
    """Create a model with Adam, or open it, and give a worker with an open session.

    Args:
        url: Of the server.
        parameters: Initial values.
        model: Its name.
        name: Of the worker.
        transport: "http", or "auto" for memory that worker and server share.
        options: Of the client.
    """
    with stepwell.Client(url, transport=transport, **options) as client:
        rule = stepwell.Adam(adam.LEARNING_RATE)
        handle = client.create_model(model, parameters, optimizer=rule, exist_ok=True)
        with handle.worker(name) as worker:
            yield worker


def check(worker: stepwell.Worker, gradients: Mapping[str, Any]) -> None:
    """Check that what this worker pushes has its effect, and that what it pulls shows it."""
    adam.check(lambda: worker.push(gradients), lambda: flat(worker.pull()), flat(gradients))


def check_shared(worker: stepwell.Worker, server: Server) -> None:
    """Check that a worker on the server's host shares memory with it, and does not go by wire.

    Models of less than 256 KiB do not.
    """
    nbytes = worker.pull()[TENSOR].nbytes
    shared = resident.shared(server.pid)
    if nbytes >= 1 << 18 and shared < nbytes:
        raise AssertionError(f"{nbytes} bytes and more are shared. Received: {shared}")


def pulls(worker: stepwell.Worker) -> Callable[[], None]:
    """Return a pull whose arrays are let go of at once, as after a copy to an accelerator.

    It fails if the pull shows another version than the one before it: then nothing came.
    """
    seen: list[int | None] = [None]

    def pull() -> None:
        version = worker.pull().version
        if version == seen[0]:
            raise AssertionError(f"a pull is timed after a step. Received version {version} twice")
        seen[0] = version

    return pull


def look(worker: stepwell.Worker) -> None:
    """Look at the parameters where the server keeps them."""
    with worker.view() as parameters:
        if not np.isfinite(parameters[TENSOR][0]):
            raise AssertionError("the parameters are finite")


def flat(tensors: Mapping[str, Any]) -> Any:
    """Return all tensors end to end, as float32, in a new array."""
    return np.concatenate([np.asarray(tensor, np.float32).ravel() for tensor in tensors.values()])


def split(values: Any, shapes: Shapes) -> dict[str, Any]:
    """Return views of a flat array as tensors of these shapes."""
    tensors, start = {}, 0
    for name, shape in shapes.items():
        stop = start + int(np.prod(shape))
        tensors[name] = values[start:stop].reshape(shape)
        start = stop
    return tensors
