"""Small pushes: what a call costs beside its bytes, against the least that HTTP costs in Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

from benchmarks import adam, ours
from benchmarks.measure import Result, at_most, medians_told, shown, us
from benchmarks.programs import Program
from benchmarks.references.no_op_route import NoOpClient
from benchmarks.server import serving
from benchmarks.turns import median_s

SIZES = {"4 KB": 1 << 10, "1 MB": 1 << 18}
"""Parameters of 4 KiB and of 1 MiB."""

TRANSPORTS = {"4 KB": ("http",), "1 MB": ("http", "auto")}
"""Small payloads go over the wire on the same host too."""

ROUNDS = 15
CALLS = 100
"""In one turn, of which the median counts."""


def run(rounds: int = ROUNDS, calls: int = CALLS) -> Result:
    """Measure everything."""
    turns: dict[str, Callable[[], float]] = {}
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(Program("references.no_op_route"))
        no_op = NoOpClient(program.facts["port"])
        stack.callback(no_op.close)
        server = stack.enter_context(serving())
        for label, size in SIZES.items():
            body = adam.gradient(size).tobytes()
            turns[f"no-op route, {label}"] = partial(median_s, partial(no_op.push, body), calls)
            for transport in TRANSPORTS[label]:
                push = _pushing(stack, server.url, size, transport)
                turns[f"{transport}, {label}"] = partial(median_s, push, calls)
        seconds = medians_told(turns, rounds)

    def compared(transport: str, label: str) -> tuple[float, str]:
        push, reference = seconds[f"{transport}, {label}"], seconds[f"no-op route, {label}"]
        return push / reference, f"{us(push)} against {us(reference)}"

    what = "4 KB push p50 through the client, against http.client and a no-op route"
    ratio, detail = compared("http", "4 KB")
    rows = [
        at_most(what, ratio, 3, detail),
        shown("1 MB push p50, against the same route", *compared("http", "1 MB")),
        shown("the same on the same host, in shared memory", *compared("auto", "1 MB")),
    ]
    return Result(rows, seconds)


def _pushing(
    stack: contextlib.ExitStack, url: str, size: int, transport: str
) -> Callable[[], object]:
    gradients = {ours.TENSOR: adam.gradient(size)}
    start = {ours.TENSOR: adam.parameters(size)}
    model = f"{transport}-{size}"
    worker = stack.enter_context(ours.working(url, start, model=model, transport=transport))
    ours.check(worker, gradients)
    return partial(worker.push, gradients)
