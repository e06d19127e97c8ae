"""From the command to ready: with kernels in the cache, and without."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import stepwell

from benchmarks.measure import Row, within

STARTS = 5


def run() -> list[Row]:
    """Measure everything and return the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _create_model(folder)
        warm = statistics.median(_start_s(folder, folder / "cache") for _ in range(STARTS))
        cold = statistics.median(
            _start_s(folder, folder / f"cold-{number}") for number in range(STARTS)
        )
    return [
        within("start to ready with one Adam model, kernels cached", warm, 3, "s"),
        within("start to ready with one Adam model, kernels to compile", cold, 8, "s"),
    ]


def _create_model(folder: Path) -> None:
    """Leave a data folder with one model in it, and a warm cache."""
    process, address = _serve(folder, folder / "cache")
    with stepwell.Client(address) as client:
        parameters = {f"t{i}": np.zeros((500,), np.float32) for i in range(20)}
        client.create_model("m", parameters, optimizer=stepwell.Adam(global_clipnorm=1.0))
    process.terminate()
    process.wait()


def _start_s(folder: Path, cache: Path) -> float:
    began = time.perf_counter()
    process, _ = _serve(folder, cache)
    seconds = time.perf_counter() - began
    process.terminate()
    process.wait()
    return seconds


def _serve(folder: Path, cache: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "stepwell_server", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(folder / "data"), "--log-format", "json"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"STEPWELL_CACHE_DIR": str(cache)},
    )
    assert process.stderr is not None
    for line in process.stderr:
        entry = json.loads(line)
        if entry.get("event") == "ready":
            return process, entry["address"]
    raise RuntimeError(f"the server ended with status {process.wait()}")
