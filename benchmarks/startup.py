"""From the command to ready: with kernels in the cache, and without."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import stepwell

from benchmarks.measure import Result, within
from benchmarks.server import start

STARTS = 5


def run(starts: int = STARTS) -> Result:
    """Measure everything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _create_model(folder)
        warm = statistics.median(_start_s(folder, folder / "cache") for _ in range(starts))
        cold = statistics.median(
            _start_s(folder, folder / f"cold-{number}") for number in range(starts)
        )
    rows = [
        within("start to ready with one Adam model, kernels cached", warm, 3, "s"),
        within("start to ready with one Adam model, kernels to compile", cold, 8, "s"),
    ]
    return Result(rows, {"warm": warm, "cold": cold})


def _create_model(folder: Path) -> None:
    """Leave a data folder with one model in it, and a warm cache."""
    process, address = start(folder / "data", cache=folder / "cache")
    with stepwell.Client(address) as client:
        parameters = {f"t{i}": np.zeros((500,), np.float32) for i in range(20)}
        client.create_model("m", parameters, optimizer=stepwell.Adam(global_clipnorm=1.0))
    process.terminate()
    process.wait()


def _start_s(folder: Path, cache: Path) -> float:
    began = time.perf_counter()
    process, _ = start(folder / "data", cache=cache)
    seconds = time.perf_counter() - began
    process.terminate()
    process.wait()
    return seconds
