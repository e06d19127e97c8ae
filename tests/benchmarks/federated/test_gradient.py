"""Gradients whose mean is exact, so that one hash is right in whatever order they are added."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xxhash

from benchmarks.federated import gradient
from benchmarks.federated.gradient import LEARNING_RATE, WEIGHTS

SIZE = 5000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of gradients."""
    gradient.write(tmp_path / "gradients", SIZE)
    return tmp_path / "gradients"


def trained(path: Path, workers: Sequence[int], rounds: int) -> str:
    """Return the hash of parameters after rounds of plain float32 arithmetic."""
    parameters = np.zeros(SIZE, np.float32)
    for _ in range(rounds):
        total = np.zeros(SIZE, np.float32)
        for worker in workers:
            total += np.float32(WEIGHTS[worker]) * gradient.window(path, SIZE, worker)
        weight = np.float32(sum(WEIGHTS[worker] for worker in workers))
        parameters -= np.float32(LEARNING_RATE) * (total / weight)
    return xxhash.xxh3_128(parameters).hexdigest()


def test_the_hash_is_that_of_the_mean_in_any_order(path: Path) -> None:
    """As gradients arrive, so they are added; the bytes must not depend on it."""
    workers = list(range(len(WEIGHTS)))
    expected = gradient.expected_hash(path, SIZE, rounds=3)

    for seed in range(5):
        random.Random(seed).shuffle(workers)
        assert trained(path, workers, rounds=3) == expected


@pytest.mark.parametrize("workers", [(0, 1, 2, 3, 4), (0, 1, 2, 3, 5, 5), (0, 1, 2, 3, 4, 5, 5)])
def test_a_gradient_too_few_or_twice_is_seen(path: Path, workers: Sequence[int]) -> None:
    """One that is left out, taken for another, or added again changes the hash."""
    assert trained(path, workers, rounds=1) != gradient.expected_hash(path, SIZE, rounds=1)


def test_workers_have_gradients_of_their_own(path: Path) -> None:
    """Windows of one file, none equal to another."""
    windows = [gradient.window(path, SIZE, worker) for worker in range(len(WEIGHTS))]

    assert len({window.tobytes() for window in windows}) == len(WEIGHTS)
