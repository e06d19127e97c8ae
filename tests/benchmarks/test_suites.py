"""Each suite runs with tiny sizes, so that none rots; what it finds there means nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import (
    checkpoint,
    dashboard,
    durability,
    metrics,
    shapes,
    startup,
    torch_step,
    update,
)
from benchmarks import workers as many
from benchmarks.federated import suite as federated
from benchmarks.measure import Result
from benchmarks.peers import suite as peers
from benchmarks.wire import large, memory, small, tensors, tls, workers
from tests import servers  # noqa: F401 - keeps compiled kernels for all tests

SIZE = 4096
SUITES: dict[str, Callable[[], Result]] = {
    "wire.large": lambda: large.run(SIZE, rounds=1),
    "wire.tensors": lambda: tensors.run({"a": (3, 5), "b": (), "c": (7,)}, rounds=1),
    "wire.small": lambda: small.run(rounds=1, calls=2),
    "wire.workers": lambda: workers.run(SIZE, counts=(1, 2), rounds=1, window_s=0.01),
    "wire.tls": lambda: tls.run(SIZE, rounds=1),
    "wire.memory": lambda: memory.run(SIZE, workers=2, load_s=0.01),
    "workers": lambda: many.run(0.5, 1, 2, SIZE, 0.05, 2, SIZE, rounds=1, processes=1),
    "durability": lambda: durability.run({"tiny": SIZE}, rounds=1),
    "checkpoint": lambda: checkpoint.run(SIZE, rounds=1),
    "metrics": lambda: metrics.run(rounds=1, calls=2),
    "torch": lambda: torch_step.run({"a": (300, 400), "b": (7,)}, rounds=2),
    "dashboard": lambda: dashboard.run(workers=9, steps=200, seconds=1.0),
    "peers": lambda: peers.run(SIZE, rounds=1, environments=()),
    "federated": lambda: federated.run(rounds=2, layers=1, width=16, words=32, context=8),
}


LONG = {
    "torch",
    "dashboard",
    "durability",
    "federated",
    "metrics",
    "peers",
    "wire.large",
    "wire.memory",
    "wire.tls",
    "wire.workers",
    "workers",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.full) if name in LONG else name for name in SUITES],
)
def test_a_suite_runs_and_says_what_it_found(name: str) -> None:
    """Whatever checks its work has, they hold; each row has its figure, or says why not."""
    result = SUITES[name]()

    assert result.rows
    assert all(row.what and row.measured and row.bar for row in result.rows)
    assert all(value > 0 for value in result.seconds.values())


def test_the_counting_of_a_push_is_timed() -> None:
    """Of what it is that a server counts."""
    assert metrics.counting_s(calls=2) > 0


@pytest.mark.full
def test_the_start_of_a_server_is_timed() -> None:
    """With kernels in the cache, and without."""
    result = startup.run(starts=1)

    assert {"warm", "cold"} == result.seconds.keys()


def test_the_update_runs_against_what_is_installed() -> None:
    """Torch is compared with where it is installed; Keras always."""
    result = update.run(SIZE, rounds=1, small_steps=2)

    assert {"ours", "keras", "small"} <= result.seconds.keys()


def test_models_have_the_sizes_that_their_papers_say() -> None:
    """161 tensors and 25.6 M parameters; 437 and 838 M, 3.35 GB as float32."""
    sizes = [
        (len(model), sum(_size(shape) for shape in model.values()))
        for model in (shapes.resnet50(), shapes.gpt2())
    ]

    assert sizes == [(161, 25_557_032), (437, 838_359_040)]


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
