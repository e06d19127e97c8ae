"""Six workers, 3.35 GB each way: push, the mean step, pull; over HTTP, one server, this machine.

Published elsewhere for the same kind of round: 154 to 158 s on 32 vCPU, with 82 GiB resident.
The server has the parameters, a spare, the sum so far, and staging for one payload; the gradients
of the others wait in their sockets.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import stepwell

from benchmarks import ours, resident
from benchmarks.federated import gradient
from benchmarks.federated.worker import MODEL
from benchmarks.measure import Result, not_measured, within
from benchmarks.programs import Program
from benchmarks.server import serving
from benchmarks.shapes import Shapes, gpt2

ROUNDS = 3
BAR_S = 25.0
BAR_MODELS = 4.5
STAGED = 1.25  # models that fit into the staging pool
ROOM = 6.5  # models: the server's, the file of gradients, and the rest of the machine

TIME = "federated round, 6 workers x 3.35 GB up and down"
MEMORY = "the server's resident peak in it"


def run(rounds: int = ROUNDS, **sizes: int) -> Result:
    """Measure everything; `sizes` are those of the GPT-2, by default GPT-2 large."""
    shapes = gpt2(**sizes)
    size = sum(map(math.prod, shapes.values()))
    free = resident.available() if resident.is_known() else 0
    if free < ROOM * 4 * size:
        why = f"needs {ROOM * 4 * size / 1e9:.0f} GB of free memory, and there are {free / 1e9:.0f}"
        bars = f"<= {BAR_S:g} s", f"<= {BAR_MODELS:g} x the model"
        return Result([not_measured(TIME, bars[0], why), not_measured(MEMORY, bars[1], why)])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_fast_folder(size))))
        path = folder / "gradients"
        gradient.write(path, size)
        server = stack.enter_context(serving("--staging-bytes", str(int(STAGED * 4 * size))))
        _create_model(server.url, shapes, size)
        workers = [
            stack.enter_context(
                Program("federated.worker", server.url, number, path, json.dumps(sizes))
            )
            for number in range(len(gradient.WEIGHTS))
        ]
        resident.forget_peak(server.pid)
        times = [_round(workers, path, size, number + 1) for number in range(rounds)]
        peak = resident.peak(server.pid)
    return _judged(times, peak, 4 * size)


def _fast_folder(size: int) -> str | None:
    """Return a folder in memory, if there is one with room, so that no disk is measured."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 2 * 4 * size
    return str(memory) if has_room else None


def _create_model(url: str, shapes: Shapes, size: int) -> None:
    with stepwell.Client(url, transport="http") as client:
        client.create_model(
            MODEL,
            ours.split(np.zeros(size, np.float32), shapes),
            optimizer=stepwell.SGD(gradient.LEARNING_RATE),
            consistency=stepwell.Sync(len(gradient.WEIGHTS), reduction="arrival"),
        )


def _round(workers: Sequence[Program], path: Path, size: int, number: int) -> tuple[float, float]:
    """Check the hashes of a round; return its seconds to the last push's answer, and in all."""
    began = time.monotonic()
    for worker in workers:
        worker.tell("round")
    answers = [worker.hear() for worker in workers]
    seconds = time.monotonic() - began
    expected = gradient.expected_hash(path, size, number)
    if any(answer["hash"] != expected for answer in answers):
        raise AssertionError(
            f"after round {number} all workers pull the parameters after the step of the mean, "
            f"with the hash {expected}. Received: {[answer['hash'] for answer in answers]}"
        )
    return max(answer["pushed_s"] for answer in answers), seconds


def _judged(times: Sequence[tuple[float, float]], peak: int, model_bytes: int) -> Result:
    up, median = (statistics.median(each) for each in zip(*times, strict=True))
    workers = len(gradient.WEIGHTS)
    rate = 2 * workers * model_bytes / median / 1e9
    each = ", ".join(f"{value:.1f}" for _, value in times)
    detail = f"{up:.1f} s up; {rate:.2f} GB/s; rounds: {each} s"
    rows = [
        within(TIME, median, BAR_S, "s", detail),
        within(
            MEMORY,
            peak / model_bytes,
            BAR_MODELS,
            "x the model",
            f"{peak / 1e9:.1f} GB; model {model_bytes / 1e9:.2f} GB",
        ),
    ]
    return Result(rows, {"up": up, "round": median})
