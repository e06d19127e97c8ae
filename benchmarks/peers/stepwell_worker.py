"""Ours: over HTTP and through memory on the same host, from plain arrays and in place.

    python -m benchmarks.peers.stepwell_worker SIZE SMALL_SIZE

In place means: the gradient is computed in a buffer that the server reads, `gradient_buffer()`, and
the parameters are read where the server keeps them, `view()`.
"""

from __future__ import annotations

import contextlib
import sys
from functools import partial

import stepwell

from benchmarks import adam, ours, turns
from benchmarks.contenders import HTTP, IN_PLACE, MEMORY
from benchmarks.server import serving


def main(size: int, small_size: int) -> None:
    start, gradients = {ours.TENSOR: adam.parameters(size)}, {ours.TENSOR: adam.gradient(size)}
    small = {ours.TENSOR: adam.gradient(small_size)}
    small_start = {ours.TENSOR: adam.parameters(small_size)}
    with serving() as server, contextlib.ExitStack() as stack:
        working = partial(ours.working, server.url)
        http = stack.enter_context(working(start, model="http"))
        memory = stack.enter_context(working(start, model="memory", transport="auto"))
        small_http = stack.enter_context(working(small_start, model="small"))
        for worker, pushed in ((http, gradients), (memory, gradients), (small_http, small)):
            ours.check(worker, pushed)
        memory.gradient_buffer()[ours.TENSOR][...] = gradients[ours.TENSOR]
        adam.check(
            lambda: memory.push(memory.gradient_buffer()),
            lambda: ours.flat(memory.pull()),
            gradients[ours.TENSOR],
        )
        ours.check_shared(memory, server)
        turns.take(
            {
                f"{HTTP}/push": turns.timed(lambda: http.push(gradients)),
                f"{HTTP}/pull": turns.timed(ours.pulls(http)),
                f"{MEMORY}/push": turns.timed(lambda: memory.push(gradients)),
                f"{MEMORY}/pull": turns.timed(ours.pulls(memory)),
                f"{IN_PLACE}/push": turns.timed(lambda: memory.push(memory.gradient_buffer())),
                f"{IN_PLACE}/pull": turns.timed(lambda: ours.look(memory)),
                f"{HTTP}/small": turns.timed(lambda: small_http.push(small), 100),
            },
            version=stepwell.__version__,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
