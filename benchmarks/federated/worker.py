"""One worker of a federated round: pushes its gradient, pulls the parameters, hashes, drops them.

    python -m benchmarks.federated.worker URL NUMBER FILE SIZES

It never has a model in memory: the gradient is a mapped file, and what is pulled comes in windows.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import stepwell
import xxhash

from benchmarks import ours, turns
from benchmarks.federated import gradient
from benchmarks.shapes import gpt2

MODEL = "federated"


def main() -> None:
    url, number, path, sizes = sys.argv[1:]
    worker_number = int(number)
    shapes = gpt2(**json.loads(sizes))
    size = sum(map(math.prod, shapes.values()))
    gradients = ours.split(gradient.window(path, size, worker_number), shapes)
    weight = gradient.WEIGHTS[worker_number]

    def one_round() -> Mapping[str, Any]:
        began = time.monotonic()
        result = worker.push(gradients, weight=weight)
        if result.outcome != "applied":
            raise AssertionError(f"the push of the round is applied. Received: {result.outcome}")
        pushed_s = time.monotonic() - began
        digest = xxhash.xxh3_128()
        worker.pull(into=lambda _name, _index, elements: digest.update(elements))
        return {"pushed_s": pushed_s, "hash": digest.hexdigest()}

    with (
        stepwell.Client(url, transport="http") as client,
        client.model(MODEL).worker(f"worker-{number}") as worker,
    ):
        turns.take({"round": one_round})


if __name__ == "__main__":
    main()
