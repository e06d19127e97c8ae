"""What the server keeps: its resident memory after several workers pushed and pulled at once, idle.

Adam keeps two slots beside the parameters, each as large as they. Parameters may be there twice,
since a step does not write where somebody reads. What is on its way has the staging pool, whose
size the server is told; what a burst took of it may be kept for the next one.
"""

from __future__ import annotations

import contextlib
import time

from benchmarks import resident
from benchmarks.measure import Result, not_measured, within
from benchmarks.programs import Program
from benchmarks.server import serving

SIZE = 25_600_000
WORKERS = 4
LOAD_S = 3.0
STAGED = 2  # payloads that fit into the staging pool: fewer than there are workers
PROGRAM_MB = 250  # Python, its libraries, and the compiled kernels
WHAT = "resident memory of the server, Adam, 102 MB of parameters, idle after load"


def run(size: int = SIZE, workers: int = WORKERS, load_s: float = LOAD_S) -> Result:
    """Measure everything."""
    if not resident.is_known():
        return Result([not_measured(WHAT, "-", "only Linux says what is resident")])
    model_mb = 4 * size / 1e6
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving("--staging-bytes", str(STAGED * 4 * size)))
        before = resident.now(server.pid) / 1e6
        with contextlib.ExitStack() as load:
            trainers = [
                load.enter_context(Program("wire.pusher", "ours", size, f"worker-{n}", server.url))
                for n in range(workers)
            ]
            now = time.monotonic()
            for trainer in trainers:
                trainer.tell("train", begins=now, ends=now + load_s)
            for trainer in trainers:
                trainer.hear()
        after = resident.now(server.pid) / 1e6
    shares = f"2 x parameters, 2 slots, {STAGED} payloads of staging: {model_mb:.0f} MB each"
    detail = f"{shares}; {before:.0f} MB before the first model"
    bar = (2 + 2 + STAGED) * model_mb + PROGRAM_MB
    return Result([within(WHAT, after, bar, "MB", detail)])
