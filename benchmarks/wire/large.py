"""102 MB: one tensor of 25.6 M float32, ResNet-50's size, pushed, stepped with Adam, and pulled.

The limit of a push is the raw socket one way, the update alone, and one read of the gradient, since
it is looked through for NaN before anything is changed. That of a pull is the raw socket one way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import xxhash
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import Adam

from benchmarks import adam, ours
from benchmarks.contenders import HTTP, IN_PLACE, MEMORY, NAIVE, RAW, push_pull_s
from benchmarks.measure import Result, Row, at_most, medians, ms, shown
from benchmarks.programs import Program
from benchmarks.references.naive_http import NaiveClient
from benchmarks.references.raw_socket import RawSocket, as_bytes
from benchmarks.server import serving
from benchmarks.update import step_of

SIZE = 25_600_000
ROUNDS = 15


@dataclass(frozen=True)
class Limits:
    """What cannot be beaten by a transport that sends everything once.

    Attributes:
        up, down: The raw socket one way.
        kernel: The update alone.
        read: One pass over the gradient.
    """

    up: float
    down: float
    kernel: float
    read: float

    @property
    def push(self) -> float:
        """The limit of a push."""
        return self.up + self.kernel + self.read

    def push_shown(self) -> str:
        """Return the limit of a push in words."""
        return f"{ms(self.up)} + {ms(self.kernel)} + {ms(self.read)}"


def run(size: int = SIZE, rounds: int = ROUNDS) -> Result:
    """Measure everything."""
    with contextlib.ExitStack() as stack:
        contenders = raw(stack, size) | alone(size) | http(stack, size) | naive(stack, size)
        seconds = medians(contenders, rounds)
    limits = Limits(
        seconds[f"{RAW}/push"], seconds[f"{RAW}/pull"], seconds["kernel"], seconds["one read"]
    )
    return Result(rows(seconds, limits), seconds)


Contenders = dict[str, Callable[[], object]]


def raw(stack: contextlib.ExitStack, size: int, *certificate: str) -> Contenders:
    """Return the raw socket one way and the other; with a certificate and its key over TLS."""
    program = stack.enter_context(Program("references.raw_socket", *certificate))
    connection = RawSocket(program.facts["port"], *certificate[:1])
    stack.callback(connection.close)
    sent, into = as_bytes(adam.gradient(size)), as_bytes(np.ones(size, np.float32))
    return {
        f"{RAW}/push": lambda: connection.push(sent),
        f"{RAW}/pull": lambda: connection.pull(into),
    }


def alone(size: int) -> Contenders:
    """Return what a push has to do beside sending: the update, and one read of the gradient."""
    gradient = adam.gradient(size)
    return {
        "kernel": step_of(Layout([Tensor("w", (size,), "float32")]), Adam(1e-3), gradient),
        "one read": lambda: xxhash.xxh3_64_intdigest(gradient),
    }


def http(stack: contextlib.ExitStack, size: int) -> Contenders:
    """Return ours: over HTTP, in bfloat16, and through memory on the same host."""
    server = stack.enter_context(serving())
    start = {ours.TENSOR: adam.parameters(size)}
    gradient = adam.gradient(size)
    full = {ours.TENSOR: gradient}
    half = {ours.TENSOR: gradient.astype(ml_dtypes.bfloat16)}
    wire = stack.enter_context(ours.working(server.url, start, model="http"))
    memory = stack.enter_context(ours.working(server.url, start, model="memory", transport="auto"))
    for worker in (wire, memory):
        ours.check(worker, full)
    ours.check(wire, half)
    memory.gradient_buffer()[ours.TENSOR][...] = gradient
    ours.check_shared(memory, server)
    into = {ours.TENSOR: np.ones(size, np.float32)}
    return {
        f"{HTTP}/push": lambda: wire.push(full),
        f"{HTTP}/pull": ours.pulls(wire),
        "bfloat16/push": lambda: wire.push(half),
        "out/pull": lambda: wire.pull(out=into),
        f"{MEMORY}/push": lambda: memory.push(full),
        f"{MEMORY}/pull": ours.pulls(memory),
        f"{IN_PLACE}/push": lambda: memory.push(memory.gradient_buffer()),
        f"{IN_PLACE}/pull": lambda: ours.look(memory),
    }


def naive(stack: contextlib.ExitStack, size: int) -> Contenders:
    """Return the naive path."""
    program = stack.enter_context(Program("references.naive_http", size))
    client = NaiveClient(program.facts["port"])
    stack.callback(client.close)
    gradient = adam.gradient(size)
    adam.check(lambda: client.push(gradient), client.pull, gradient)
    return {f"{NAIVE}/push": lambda: client.push(gradient), f"{NAIVE}/pull": client.pull}


def rows(seconds: dict[str, float], limits: Limits) -> list[Row]:
    """Return the figures against their bars."""
    push, pull, half = seconds[f"{HTTP}/push"], seconds[f"{HTTP}/pull"], seconds["bfloat16/push"]
    both = {name: push_pull_s(seconds, name) for name in (HTTP, MEMORY, IN_PLACE, RAW, NAIVE)}
    return [
        at_most(
            "push 102 MB over HTTP with its Adam step, against raw socket + kernel + one read",
            push / limits.push,
            1.25,
            f"{ms(push)} against {limits.push_shown()}",
        ),
        at_most(
            "pull 102 MB over HTTP, against the raw socket",
            pull / limits.down,
            1.2,
            f"{ms(pull)} against {ms(limits.down)}",
        ),
        shown(
            "the same into arrays that are there: pull(out=...)",
            seconds["out/pull"] / limits.down,
            f"{ms(seconds['out/pull'])} against {ms(limits.down)}",
        ),
        at_most(
            "bfloat16 push over HTTP, against float32; conversion excluded",
            half / push,
            0.75,
            f"{ms(half)} against {ms(push)}",
        ),
        *(
            shown(
                f"push + pull 102 MB: {name}, against ours over HTTP",
                both[name] / both[HTTP],
                f"{ms(both[name])} against {ms(both[HTTP])}",
            )
            for name in (RAW, MEMORY, IN_PLACE, NAIVE)
        ),
    ]
