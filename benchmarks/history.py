"""What the history costs a push: `python -m benchmarks.history`.

One server in this process, one worker over HTTP. Blocks of pushes with the history and without it
take turns, so that whatever else the machine does is in both; the medians are compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import stepwell
from stepwell_server.history import StepRecorder
from stepwell_server.history.steps import Before

from tests.servers import hosted

SIZES = {"4 KB": (1_000, 20, 300), "1 MB": (250_000, 10, 100), "100 MB": (25_000_000, 1, 16)}
"""Elements, pushes in a block, blocks."""

NOTHING = Before(None, is_kept=False, is_measured=False)


class Silent(StepRecorder):
    """Tells nothing of the pushes."""

    def before(self, staged: Any) -> Before:
        """Look at nothing."""
        return NOTHING

    def after(self, staged: Any, before: Before) -> None:
        """Add nothing."""


def main() -> None:
    """Print a line a size: medians in microseconds, and their ratio."""
    with tempfile.TemporaryDirectory() as folder, hosted(Path(folder), durability="memory") as at:
        client = stepwell.Client(at.url, transport="http")
        for label, (elements, count, blocks) in SIZES.items():
            name = label.replace(" ", "-").lower()
            model = client.create_model(
                name, {"w": np.zeros(elements, np.float32)}, optimizer="adam"
            )
            hosted_model = at.application.registry.get(name)
            told = hosted_model.pushes._steps
            silent = Silent(hosted_model.engine, hosted_model.history)
            gradients = {"w": np.full(elements, 0.1, np.float32)}
            taken: dict[bool, list[float]] = {True: [], False: []}
            with model.worker("w0") as worker:
                for _ in range(5):
                    worker.push(gradients)
                for block in range(blocks):
                    is_told = block % 2 == 0
                    hosted_model.pushes._steps = told if is_told else silent
                    for _ in range(count):
                        began = time.perf_counter()
                        worker.push(gradients, metrics={"loss": 0.5})
                        taken[is_told].append(time.perf_counter() - began)
            client.delete_model(name)
            with_it, without = (statistics.median(taken[key]) * 1e6 for key in (True, False))
            print(f"{label:>7}: {with_it:9.0f} {without:9.0f} {with_it / without:6.3f}", flush=True)
        client.close()


if __name__ == "__main__":
    main()
