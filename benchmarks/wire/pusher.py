"""One of several workers at once: pushes the same gradient again and again until a given time.

Or trains: pushes and pulls in turns, so that with several of them some push while others pull.

python -m benchmarks.wire.pusher ours SIZE NAME URL
python -m benchmarks.wire.pusher raw SIZE NAME PORT
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import adam, ours, turns
from benchmarks.references.raw_socket import RawSocket, as_bytes

MODEL = "shared"


def until(push: Callable[[], object]) -> turns.Turn:
    """Return a turn that pushes from one time to another of the monotonic clock, which all share.

    It makes one at least, and says how many, and in how many seconds. What is called a push may do
    more than that.
    """

    def turn(*, begins: float, ends: float) -> Mapping[str, Any]:
        time.sleep(max(0.0, begins - time.monotonic()))
        began, pushes = time.monotonic(), 0
        while not pushes or time.monotonic() < ends:
            push()
            pushes += 1
        return {"pushes": pushes, "seconds": time.monotonic() - began}

    return turn


def main() -> None:
    kind, size, name, address = sys.argv[1:]
    gradient = adam.gradient(int(size))
    if kind == "raw":
        connection = RawSocket(int(address))
        turns.take({"push": until(lambda: connection.push(as_bytes(gradient)))})
        return
    start = {ours.TENSOR: adam.parameters(int(size))}
    with ours.working(address, start, model=MODEL, name=name) as worker:
        worker.pull()
        gradients = {ours.TENSOR: gradient}

        def train() -> None:
            worker.push(gradients)
            worker.pull()

        turns.take({"push": until(lambda: worker.push(gradients)), "train": until(train)})


if __name__ == "__main__":
    main()
