"""Write a data folder with the Stepwell that is on PYTHONPATH, and what was in it as JSON.

    PYTHONPATH=$PWD/core:$PWD/server:$PWD/client python tests/server/golden/make_data.py \\
        NAME [OPTION OF serve ...]

A folder is written once, by the server of its time, and read by all that come later: do not make an
old one again with newer sources. In `data/` are

    checkpoint-1             of commit 9e6e7fa, the last that wrote checkpoints of version 1
    checkpoint-2-journal-1   of commit 4a0640b; its manifest lacks `ledger_xxh3_128`
    checkpoint-2-ledger      as it is since

Those with a journal were made with `--durability always`, and end with a kill that leaves two steps
in the journal alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import stepwell

DATA = Path(__file__).parent / "data"
START = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(3, np.float64)}
KEPT = (".json", ".safetensors", "newest-segment")
KEPT_SEGMENT_BYTES = 1 << 16
"""A segment has room for what may come; all that was written is in its first blocks."""


def train(model: stepwell.Model, worker: stepwell.Worker, steps: int) -> None:
    """Push gradients that are never the same, and exact in binary."""
    for _ in range(steps):
        step = model.describe()["version"] + 1
        worker.push({name: np.full(a.shape, step / 8, a.dtype) for name, a in START.items()})


def main(name: str, *options: str) -> None:
    """Train, write a checkpoint, train on, and end the server: by a kill where it has a journal."""
    target = DATA / name
    shutil.rmtree(target, ignore_errors=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "stepwell_server", "serve", *options]
    server = subprocess.Popen([*command, "--port", str(port), "--data-dir", str(target)])
    client = stepwell.Client(
        f"http://127.0.0.1:{port}", timeout=stepwell.Timeout(connect_s=60), transport="http"
    )
    model = client.create_model("m", START, optimizer=stepwell.SGD(0.5, momentum=0.5))
    worker = model.worker("w0")
    worker.open()
    train(model, worker, 3)
    model.checkpoint()
    has_journal = (target / "m" / "journal").exists()
    train(model, worker, 2 if has_journal else 0)
    pulled = model.pull()
    expected = {
        "version": pulled.version,
        "incarnation": pulled.incarnation,
        "parameters": {tensor: array.tolist() for tensor, array in pulled.items()},
        "momentum": {t: a.tolist() for t, a in model.pull(slot="momentum").items()},
        "epoch": worker.epoch,
        "last_sequence": pulled.version - 1,
        "has_journal": has_journal,
    }
    server.send_signal(signal.SIGKILL)
    server.wait()
    for path in target.rglob("*"):
        if path.suffix == ".segment":
            os.truncate(path, KEPT_SEGMENT_BYTES)
        elif not (path.is_dir() or path.name in KEPT or path.suffix in KEPT):
            path.unlink()  # a socket, a lock, the history
    (DATA / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
