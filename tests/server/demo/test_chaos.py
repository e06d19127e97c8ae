"""The plan of chaos, and how it is carried out; nobody is harmed here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_server.demo.chaos import KINDS, Blow, Chaos, Deed, plan
from stepwell_server.demo.worker import Task


class Victims:
    """Writes down what is done to it."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    def add(self, task: Task) -> None:
        self.done.append(("add", task.worker))

    def kill(self, worker: str) -> None:
        self.done.append(("kill", worker))

    def suspend(self, worker: str) -> None:
        self.done.append(("suspend", worker))

    def resume(self, worker: str) -> None:
        self.done.append(("resume", worker))


def task_of(worker: str) -> Task:
    """Return something to do."""
    return Task("m", worker, None, 1, 1, 0)


def test_one_seed_gives_one_plan() -> None:
    """And another one another."""
    assert plan(3, 4) == plan(3, 4)
    assert plan(3, 4) != plan(4, 4)


@given(seed=st.integers(0, 2**32), workers=st.integers(2, 64))
def test_in_every_plan_each_kind_happens_and_somebody_is_left(seed: int, workers: int) -> None:
    """Only who is there is killed or stopped, only who was killed comes again."""
    living, dead = {f"w{index}" for index in range(workers)}, set[str]()

    blows = plan(seed, workers)

    assert [blow.kind for blow in blows] == list(KINDS)
    assert [blow.at for blow in blows] == sorted(blow.at for blow in blows)
    assert all(0.1 < blow.at < 0.85 for blow in blows)
    for blow in blows:
        match blow.kind:
            case "kill":
                living.remove(blow.worker)
                dead.add(blow.worker)
            case "restart":
                dead.remove(blow.worker)
                living.add(blow.worker)
            case "add":
                assert blow.worker not in living | dead
                living.add(blow.worker)
            case "stop":
                assert blow.worker in living
        assert living


def test_a_blow_is_dealt_when_its_share_of_the_training_is_done() -> None:
    """In order, each once; what is overdue is done at once."""
    victims = Victims()
    blows = [Blow(0.2, "kill", "w0"), Blow(0.3, "add", "w4"), Blow(0.9, "restart", "w0")]
    chaos = Chaos(blows, victims, task_of, clock=lambda: 7.0)

    assert chaos.go_on(0.19) == []
    assert chaos.go_on(0.5) == [Deed(7.0, "kill", "w0"), Deed(7.0, "add", "w4")]
    assert chaos.go_on(0.5) == []
    assert chaos.go_on(1.0) == [Deed(7.0, "restart", "w0")]

    assert victims.done == [("kill", "w0"), ("add", "w4"), ("add", "w0")]
    assert chaos.counts == {"kill": 1, "add": 1, "restart": 1}


def test_who_is_stopped_goes_on_after_a_while_by_the_clock() -> None:
    """Whatever the training does meanwhile; it may be waiting for just that worker."""
    victims, now = Victims(), [10.0]
    chaos = Chaos([Blow(0.5, "stop", "w1")], victims, task_of, stop_s=3.0, clock=lambda: now[0])
    chaos.go_on(0.5)

    now[0] = 12.9
    assert chaos.go_on(0.5) == []
    now[0] = 13.0
    assert chaos.go_on(0.5) == [Deed(13.0, "resume", "w1")]

    assert victims.done == [("suspend", "w1"), ("resume", "w1")]
    assert chaos.counts == {"stop": 1}


def test_who_is_killed_while_it_is_stopped_is_not_resumed() -> None:
    """There is nobody to go on."""
    victims, now = Victims(), [0.0]
    blows = [Blow(0.1, "stop", "w1"), Blow(0.2, "kill", "w1")]
    chaos = Chaos(blows, victims, task_of, stop_s=3.0, clock=lambda: now[0])

    chaos.go_on(0.3)
    now[0] = 9.0
    chaos.go_on(0.9)

    assert victims.done == [("suspend", "w1"), ("kill", "w1")]


def test_a_plan_for_one_worker_is_a_mistake() -> None:
    """Nobody would be left."""
    with pytest.raises(AssertionError):
        plan(0, 1)
