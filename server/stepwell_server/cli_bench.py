"""`stepwell bench`: how fast pushes and pulls are at a server, from where this is run.

As `redis-benchmark` is for Redis: a look at one installation, with its disk, its network and its
neighbours. Figures beside references are in benchmarks/ of the sources.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from stepwell_core.errors import StepwellError

from stepwell_server.cli_asking import sign_of_life
from stepwell_server.cli_interrupts import held, like_ctrl_c
from stepwell_server.cli_options import AsJson, Url
from stepwell_server.cli_status import bytes_shown

if TYPE_CHECKING:  # not needed by a server that starts
    import stepwell

SIZES = (4_000, 1_000_000, 100_000_000)
"""Bytes of a gradient."""

LEAST_CALLS, MOST_CALLS = 5, 2000
WARM_UP_CALLS = 3
ELEMENT_BYTES = 4

TENSOR = "w"


@dataclass(frozen=True)
class Figure:
    """What one kind of call took, at one size.

    Attributes:
        call: "push", "pull" or "push_pull".
        nbytes: Of the parameters.
        calls: How many were timed.
        p50_s: Median.
        p99_s: 99 of 100 took no longer.
        bytes_per_s: Of tensors, both ways for "push_pull", at the median.
    """

    call: str
    nbytes: int
    calls: int
    p50_s: float
    p99_s: float
    bytes_per_s: float


def bench(
    size: Annotated[
        list[int] | None,
        typer.Option(min=ELEMENT_BYTES, help="Bytes of a gradient [4 kB, 1 MB and 100 MB]."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="For each figure, about.")] = 2.0,
    optimizer: Annotated[str, typer.Option(help="Such as sgd or adam.")] = "adam",
    transport: Annotated[
        Literal["auto", "http"], typer.Option(help="auto uses shared memory where it can.")
    ] = "auto",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Time pushes and pulls of one worker, on models of its own that it deletes in the end.

    Needs the role admin.
    """
    import stepwell

    with like_ctrl_c(), stepwell.Client(url, transport=transport) as client:
        figures = []
        for nbytes in (each // ELEMENT_BYTES * ELEMENT_BYTES for each in size or SIZES):
            with _model(client, nbytes, optimizer) as model, sign_of_life(bytes_shown(nbytes)):
                figures += _figures(model, nbytes, seconds)
    if as_json:
        typer.echo(json.dumps({"figures": [asdict(figure) for figure in figures]}))
        return
    typer.echo(f"{'call':<10}{'size':>9}{'median':>12}{'p99':>12}{'rate':>12}{'calls':>8}")
    for each in figures:
        typer.echo(
            f"{each.call:<10}{bytes_shown(each.nbytes):>9}{_ms(each.p50_s):>12}"
            f"{_ms(each.p99_s):>12}{bytes_shown(each.bytes_per_s) + '/s':>12}{each.calls:>8}"
        )


@contextmanager
def _model(client: stepwell.Client, nbytes: int, optimizer: str) -> Iterator[stepwell.Model]:
    """Give a model that is there for the block; nobody else's has such a name.

    Raises:
        StepwellError: What the server says; one that could not be deleted is named.
    """
    import numpy as np

    name = f"bench-{secrets.token_hex(8)}"
    start = {TENSOR: np.zeros(nbytes // ELEMENT_BYTES, np.float32)}
    is_made = False
    try:
        with held():  # the server goes on making one whose maker is gone
            model = client.create_model(name, start, optimizer=optimizer)
            is_made = True
        yield model
    finally:
        if is_made:
            with held():
                _delete(client, name)


def _delete(client: stepwell.Client, name: str) -> None:
    try:
        client.delete_model(name)
    except StepwellError as error:
        raise StepwellError(
            f"Model {name!r} of this command could not be deleted ({error.code}) and is still on "
            f"the server; stepwell.Client().delete_model({name!r}) removes it. {error.message}"
        ) from error


def _figures(model: stepwell.Model, nbytes: int, seconds: float) -> list[Figure]:
    """Time each kind of call of one worker."""
    import numpy as np

    gradient = np.full(nbytes // ELEMENT_BYTES, 1e-3, np.float32)
    with model.worker("bench") as worker:
        worker.pull()

        def filled() -> dict[str, Any]:
            """Return the gradient where it is sent from, as a training loop would write it."""
            buffer = worker.gradient_buffer()
            np.copyto(buffer[TENSOR], gradient)
            return buffer

        def push() -> float:
            tensors = filled()
            began = time.perf_counter()
            worker.push(tensors)
            return time.perf_counter() - began

        def push_pull() -> float:
            tensors = filled()
            began = time.perf_counter()
            worker.push_pull(tensors)
            return time.perf_counter() - began

        def pull() -> float:
            began = time.perf_counter()
            model.pull()
            return time.perf_counter() - began

        return [
            _timed("push", push, nbytes, seconds, 1),
            _timed("pull", pull, nbytes, seconds, 1),
            _timed("push_pull", push_pull, nbytes, seconds, 2),
        ]


def _timed(name: str, call: Callable[[], float], nbytes: int, seconds: float, ways: int) -> Figure:
    for _ in range(WARM_UP_CALLS):
        call()
    times: list[float] = []
    ends = time.monotonic() + seconds
    while len(times) < LEAST_CALLS or (time.monotonic() < ends and len(times) < MOST_CALLS):
        times.append(call())
    times.sort()
    p50, p99 = (times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99))
    return Figure(name, nbytes, len(times), p50, p99, ways * nbytes / p50)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
