"""Gradients of several workers in one file, and the exact parameters after the step of their mean.

Each worker's gradient is a window of the file, a little further on than the one before, so all of
them differ and all take the memory of one. The values are multiples of 1/1024, the weights of the
workers add up to a power of two, and the learning rate is one: float32 holds every sum, mean and
product of them exactly, in whatever order it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 3.0)
LEARNING_RATE = 0.25
STRIDE = 1 << 14
"""Elements from one worker's window to the next."""

PIECE = 1 << 22


def write(path: Path, size: int) -> None:
    """Write the gradients of so many parameters."""
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        for start, stop in _pieces(size + STRIDE * len(WEIGHTS)):
            values = random.integers(-511, 512, stop - start, np.int16).astype(np.float32)
            values /= 1024
            values.tofile(file)


def window(path: Path | str, size: int, worker: int) -> Any:
    """Return the gradient of a worker, flat: a read-only view of the file."""
    mapped = np.memmap(path, np.float32, "r")
    return mapped[STRIDE * worker : STRIDE * worker + size]


def expected_hash(path: Path, size: int, rounds: int) -> str:
    """Return the hash of parameters that began at zero, after some rounds with these gradients."""
    windows = [window(path, size, worker) for worker in range(len(WEIGHTS))]
    digest = xxhash.xxh3_128()
    for start, stop in _pieces(size):
        total = np.zeros(stop - start, np.float32)
        for weight, gradient in zip(WEIGHTS, windows, strict=True):
            total += np.float32(weight) * gradient[start:stop]
        moved = total * np.float32(-rounds * LEARNING_RATE / sum(WEIGHTS))
        moved += np.float32(0)  # -0 and 0 are the same parameter and not the same bytes
        digest.update(moved.data)
    return digest.hexdigest()


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, PIECE):
        yield start, min(size, start + PIECE)
