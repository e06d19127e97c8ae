"""The settings of each mode."""

from __future__ import annotations

import pytest
import stepwell
from stepwell_server.demo.recipes import Mode, consistency, recipe
from stepwell_server.demo.worker import Task


@pytest.mark.parametrize(
    ("mode", "versions"),
    [("async", 40), ("bounded", 40), ("sync", 10), ("quorum", 10), ("buffered", 10)],
)
def test_a_recipe_knows_how_many_steps_there_will_be(mode: Mode, versions: int) -> None:
    """The learning rate falls to zero at the last of them."""
    chosen = recipe("sgd", mode, workers=4, steps_per_worker=10)

    schedule = chosen.optimizer["config"]["learning_rate"]["config"]
    assert chosen.versions == schedule["decay_steps"] == versions


def test_each_mode_has_arguments_for_so_many_workers() -> None:
    """With a lease, which means that workers come and go, `sync` is of all who are there."""
    assert consistency("async", 4) == stepwell.Async()
    assert consistency("sync", 4) == stepwell.Sync(4)
    assert consistency("sync", 4, lease_s=2.0) == stepwell.Sync("all", lease_s=2.0)
    assert consistency("quorum", 4, lease_s=2.0) == stepwell.Quorum(4, 3, lease_s=2.0)
    assert consistency("quorum", 1) == stepwell.Quorum(1, 1)
    assert consistency("buffered", 4) == stepwell.Buffered(4)
    assert consistency("bounded", 4, lease_s=2.0).lease_s == 2.0


def test_a_worker_ends_by_its_pushes_or_by_the_version() -> None:
    """A version says it alone where there is one."""
    by_pushes, by_version = Task("m", "w", 0, 3, 1, 0), Task("m", "w", 0, 3, 1, 0, until=100)

    assert [by_pushes.is_done(step, 500) for step in (0, 2, 3)] == [False, False, True]
    assert [by_version.is_done(9, version) for version in (0, 99, 100)] == [False, False, True]
