"""Some of many workers: each is a session and a thread of this process.

    python -m benchmarks.wire.crowd URL SIZE FIRST COUNT MODEL ...

They are called `worker-FIRST` and so on, in each of the models. A gradient goes from the array to
the socket without the GIL, so a few such processes stand for several times as many workers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import stepwell

from benchmarks import adam, ours, turns


def until(push: Callable[[], object], begins: float, ends: float) -> list[float]:
    """Push from one time to another of the monotonic clock, once at least; returns the seconds."""
    time.sleep(max(0.0, begins - time.monotonic()))
    seconds: list[float] = []
    while not seconds or time.monotonic() < ends:
        began = time.monotonic()
        push()
        seconds.append(time.monotonic() - began)
    return seconds


def ended(push: Callable[[], object], begins: float) -> float:
    """Push once, from a time on, and return the time of the answer."""
    time.sleep(max(0.0, begins - time.monotonic()))
    push()
    return time.monotonic()


def main() -> None:
    url, size, first, count, *models = sys.argv[1:]
    gradients = {ours.TENSOR: adam.gradient(int(size))}
    with ExitStack() as stack:
        client = stack.enter_context(stepwell.Client(url, transport="http"))
        threads = stack.enter_context(ThreadPoolExecutor(int(count)))
        pushes: dict[str, list[Callable[[], object]]] = {}
        for model in models:
            for number in range(int(first), int(first) + int(count)):
                worker = client.model(model).worker(f"worker-{number:03}")
                push = partial(stack.enter_context(worker).push, gradients)
                pushes.setdefault(model, []).append(push)

        def each(turn: Callable[..., Any], model: str, **times: float) -> list[Any]:
            return list(threads.map(lambda push: turn(push, **times), pushes[model]))

        def push_until(*, model: str, **times: float) -> Mapping[str, Any]:
            return {"seconds": each(until, model, **times)}

        def push_once(*, model: str, begins: float) -> Mapping[str, Any]:
            return {"ended": max(each(ended, model, begins=begins))}

        turns.take({"until": push_until, "once": push_once})


if __name__ == "__main__":
    main()
