"""How ours is used in suites."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import ours


def worker(versions: list[int]) -> Any:
    """Return a worker that pulls parameters of these versions, one after the other."""
    left = iter(versions)
    return SimpleNamespace(pull=lambda: SimpleNamespace(version=next(left)))


def test_a_pull_of_the_same_version_is_not_timed() -> None:
    """Nothing would have come."""
    pull = ours.pulls(worker([1, 2, 2]))
    pull()
    pull()

    with pytest.raises(AssertionError, match="version 2 twice"):
        pull()


def test_tensors_lie_end_to_end() -> None:
    """Split and put together again, nothing is lost or moved."""
    values = np.arange(10, dtype=np.float32)

    tensors = ours.split(values, {"a": (2, 3), "b": (), "c": (3,)})

    assert [tensor.shape for tensor in tensors.values()] == [(2, 3), (), (3,)]
    assert np.array_equal(ours.flat(tensors), values)
