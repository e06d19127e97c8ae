"""What is told of a step, which steps are measured, and that no trouble reaches a push."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from stepwell_core.consistency import Buffered
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD
from stepwell_core.pipeline import Gradient
from stepwell_core.push import Push, Staged
from stepwell_server.history import History, StepRecorder
from stepwell_server.history import steps as module
from stepwell_server.history.steps import Allowance

from tests.server.history.entries import Clock
from tests.server.registries import LAYOUT


class Recording(History):
    """A history that says what was added to it."""

    def __init__(self):
        super().__init__()
        self.added = []

    def add(self, event, *, is_kept=True):
        self.added.append((event, is_kept))


class Training:
    """An engine, pushes of one worker, and what its history was told."""

    def __init__(self, **options):
        optimizer = options.pop("optimizer", SGD(0.5))
        definition = Definition("m", LAYOUT, optimizer, **options)
        self.engine = Engine.create(definition, LAYOUT.new_arenas(1.0), "i")
        self.clock, self.history = Clock(), Recording()
        self.steps = StepRecorder(self.engine, self.history, self.clock)
        self.open()

    def open(self):
        """Open a session in the present history."""
        self.session, _ = self.engine.open_session("w0")
        self.sequence = 0

    def push(self, value=2.0, **fields):
        """Make one push as `Pushes` does; returns the events that it made."""
        gradient = Gradient(LAYOUT, {"float32": np.full(4, value, np.float32)})
        incarnation = self.engine.incarnation
        push = Push("w0", self.session.epoch, self.sequence, incarnation, gradient, **fields)
        staged = self.engine.stage(push)
        assert isinstance(staged, Staged)
        before = self.steps.before(staged)
        self.engine.commit(staged)
        self.sequence += 1
        self.history.added.clear()
        self.steps.after(staged, before)
        return [event for event, _ in self.history.added]


def test_a_step_is_told_with_all_that_is_known_of_it():
    """Gradient of four 2s at rate 0.5: the norms are 4 and 2."""
    training = Training()

    (event,) = training.push(2.0, version=0, metrics={"loss": 0.25})

    assert (event.version, event.outcome, event.workers) == (1, "applied", ("w0",))
    assert (event.learning_rate, event.staleness_max) == (0.5, 0)
    assert (event.gradient_norm, event.update_norm) == (4.0, 2.0)
    assert event.metrics == {"w0": {"loss": 0.25}}


def test_staleness_is_told():
    """Two steps after the version that the gradient was computed at."""
    training = Training()
    training.push()
    training.push()

    (event,) = training.push(version=0)

    assert (event.staleness_max, event.staleness_mean) == (2, 2.0)


def test_an_accumulating_push_has_no_update():
    """The parameters stay as they are until the last of them."""
    training = Training(optimizer=SGD(0.5, gradient_accumulation_steps=2))

    (first,) = training.push()
    (second,) = training.push()

    assert (first.outcome, first.gradient_norm, first.update_norm) == ("accumulated", 4.0, None)
    assert second.update_norm == 2.0


def test_a_drop_is_told_and_so_is_the_loss_scale_that_it_halves():
    """With dynamic loss scaling NaN costs the step."""
    training = Training(optimizer=LossScaleOptimizer(SGD(0.5), initial_scale=8.0))

    drop, scale = training.push(math.nan)

    assert (drop.kind, drop.worker, drop.outcome) == ("drop", "w0", "skipped_nonfinite")
    assert (scale.kind, scale.old, scale.new) == ("loss_scale", 8.0, 4.0)


def test_the_norm_is_that_of_the_unscaled_gradient():
    """What the step takes, not what the worker sent."""
    training = Training(optimizer=LossScaleOptimizer(SGD(0.5), initial_scale=8.0))

    (event,) = training.push(16.0)

    assert (event.gradient_norm, event.update_norm) == (4.0, 2.0)


def test_the_norm_is_that_of_the_gradient_whatever_its_memory_is_used_for_once_it_was_answered():
    """A worker on the same host writes its next gradient there; what waited gives its back."""
    training = Training()
    commit = training.engine.commit

    def answered(staged):
        results = commit(staged)
        staged.gradient.arenas["float32"][...] = 99.0
        return results

    training.engine.commit = answered

    (event,) = training.push(2.0)

    assert (event.gradient_norm, event.update_norm) == (4.0, 2.0)


def test_a_step_after_a_cut_is_not_made_of_what_was_gathered_before():
    """The history that it was gathered in is no more."""
    training = Training(consistency=Buffered(2))
    begin = training.engine.state()
    parameters = {"float32": begin.parameters["float32"].copy()}
    saved = dataclasses.replace(
        begin, parameters=parameters, slots={n: LAYOUT.new_arenas() for n in begin.slots}
    )
    training.push(metrics={"loss": 9.0})
    training.engine.restore(saved, "another")
    training.open()
    training.push(metrics={"loss": 1.0})

    (event,) = training.push(metrics={"loss": 1.0})

    assert (event.workers, event.metrics) == (("w0", "w0"), {"w0": {"loss": 1.0}})


def test_the_file_gets_the_first_steps_and_then_some_a_second(monkeypatch):
    """Those who listen get every one."""
    monkeypatch.setattr(module, "BURST", 3)
    training = Training()
    kept = []
    for _ in range(10):
        training.push()
        kept.append(training.history.added[0][1])
    training.clock.now += 1 / module.KEPT_PER_S
    training.push()
    kept.append(training.history.added[0][1])

    assert kept == [True] * 3 + [False] * 7 + [True]


def test_measuring_takes_a_small_share_of_the_time(monkeypatch):
    """One that took a second is the last for 200 s."""
    training = Training()
    norm = module.gradient_norm

    def slow(*arguments):
        training.clock.now += 1.0
        return norm(*arguments)

    monkeypatch.setattr(module, "gradient_norm", slow)

    measured = []
    for _ in range(400):
        measured.append(training.push()[0].gradient_norm is not None)
        training.clock.now += 1.0

    assert measured[:100] == [True] + [False] * 99
    assert sum(measured) == 3


def test_a_failure_to_measure_reaches_no_push(monkeypatch):
    """It is logged once; the steps are told without norms from then on."""

    def fail(*arguments):
        raise MemoryError("no room")

    training = Training()
    monkeypatch.setattr(module, "gradient_norm", fail)

    for _ in range(2):
        (event,) = training.push()
        assert (event.gradient_norm, event.update_norm) == (None, None)


def test_an_allowance_grows_up_to_its_limit_and_may_be_overdrawn():
    """Then it takes as long as what was taken too much."""
    allowance = Allowance(per_s=2.0, most=1.0, now=0.0)

    allowance.spend(5.0)
    left = [allowance.has_any(now) for now in (1.0, 2.0, 2.1, 100.0)]
    allowance.spend(1.0)

    assert left == [False, False, True, True]
    assert not allowance.has_any(100.0)
    assert allowance._left == pytest.approx(0.0)
