"""What a journal says of a run, made again, is the run: every bit, every number, every session."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stepwell_core.consistency import Sync
from stepwell_core.errors import JournalInvalid
from stepwell_core.gradient import Gradient
from stepwell_core.layout import Layout, Tensor
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adagrad, Adam, PerPush
from stepwell_core.record import Finalized, SessionClosed, SessionOpened
from stepwell_core.replay import replay
from stepwell_core.schedules import ExponentialDecay

from tests.core.journaled import Journaled, lasting
from tests.core.models import LAYOUT, Worker, new_engine, random_arrays

RNG = np.random.default_rng(3)
GRADIENTS = [random_arrays(RNG) for _ in range(12)]

RULES = {
    "sgd": SGD(0.5),
    "nesterov": SGD(0.5, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adagrad, clipped": Adagrad(0.1, clipnorm=0.5),
    "adam, all": Adam(
        ExponentialDecay(0.1, 2, 0.5),
        global_clipnorm=1.0,
        use_ema=True,
        ema_overwrite_frequency=3,
        gradient_accumulation_steps=2,
        weight_decay=0.004,
        loss_scale_factor=8.0,
    ),
    "scaled": LossScaleOptimizer(Adam(0.1), initial_scale=64.0, dynamic_growth_steps=2),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_run_made_again_ends_with_the_same_bytes(rule):
    """Slots, counters, loss scale, ledger; also what is pushed after it."""
    journaled = Journaled(new_engine(rule))
    engine = journaled.engine
    first, second = Worker(engine, "a"), Worker(engine, "b")
    for number, gradient in enumerate(GRADIENTS):
        worker = first if number % 3 else second
        part = dict(list(gradient.items())[: 1 + number % 2])
        worker.push(part if number % 4 == 1 else gradient, version=None)
        if number == 7:
            second.close()
            second.open()

    again = journaled.recovered()

    assert lasting(again) == lasting(engine)
    push = first.make(GRADIENTS[0])
    for model in (engine, again):
        model.commit(model.stage(push))
    assert lasting(again) == lasting(engine)


def test_steps_that_are_skipped_and_pushes_that_are_dropped_come_back():
    """Their numbers are used up, and the loss scale is halved."""
    nan = {**GRADIENTS[0], "bias": np.full(4, np.nan)}
    for optimizer, action in ((RULES["scaled"], "reject"), (SGD(0.5), "drop")):
        journaled = Journaled(new_engine(optimizer, on_nonfinite=action))
        worker = Worker(journaled.engine)
        outcomes = [worker.push(g).outcome for g in (GRADIENTS[0], nan, GRADIENTS[1], nan)]

        assert outcomes == ["applied", "skipped_nonfinite"] * 2
        assert lasting(journaled.recovered()) == lasting(journaled.engine)


def test_hyperparameters_a_finalized_average_and_values_of_each_push_come_back():
    """In the order in which they changed."""
    rule = Adam(PerPush(), use_ema=True)
    journaled = Journaled(new_engine(rule))
    worker = Worker(journaled.engine)
    for number, gradient in enumerate(GRADIENTS[:6]):
        worker.push(gradient, hyperparameters={"learning_rate": 0.1 / (1 + number)})
        if number == 2:
            journaled.set(beta_1=0.5, epsilon=1e-3)
        if number == 4:
            journaled.finalize()

    assert lasting(journaled.recovered()) == lasting(journaled.engine)


@pytest.mark.parametrize("reduction", ["order", "arrival"])
def test_a_step_of_several_workers_is_one_record_and_comes_back(reduction):
    """The reduced gradient, and who was in it; what waits is sent again."""
    engine = new_engine(Adam(0.1), consistency=Sync(3, reduction=reduction))
    journaled = Journaled(engine)
    workers = [Worker(engine, name) for name in "abc"]
    before = len(journaled.records)
    for step in range(3):
        for worker, gradient in zip(workers, GRADIENTS[3 * step :], strict=False):
            worker.push(gradient, weight=1.0 + step)
    steps = len(journaled.records) - before
    workers[0].push(GRADIENTS[0])
    workers[2].close()
    workers[1].push(GRADIENTS[1])

    again = journaled.recovered()

    assert steps == 3
    assert lasting(again) == lasting(engine)
    assert list(again.policy.waiting) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_gradients_come_back_in_the_format_they_came_in(dtype):
    """Payload as received."""
    layout = Layout([Tensor("w", (5,), "float32"), Tensor("v", (3,), "float32")])
    engine = new_engine(SGD(0.5, momentum=0.5), layout=layout)
    journaled = Journaled(engine)
    worker = Worker(engine)
    payload = layout.new_payload(dtype)
    for array in payload.values():
        array[...] = 0x3FC0 if dtype == "bfloat16" else 1.5
    zeros = {name: np.zeros(t.shape, np.float32) for name, t in zip("wv", layout, strict=True)}
    push = replace(worker.make(zeros), gradient=Gradient(layout, payload, dtype))

    engine.commit(engine.stage(push))

    (_, (_, content)) = journaled.records
    assert len(content) == layout.payload_nbytes(dtype)
    assert lasting(journaled.recovered()) == lasting(engine)


@pytest.mark.parametrize(
    "change", [SessionOpened("w", 7), SessionClosed("nobody", 1), Finalized()], ids=str
)
def test_a_record_that_does_not_follow_is_refused(change):
    """It is another model's, or something is missing before it."""
    engine = new_engine(SGD(0.5, use_ema=True))

    with pytest.raises(JournalInvalid):
        replay(engine, change)


def test_the_layout_of_these_tests_has_two_arenas():
    """So that payloads of both dtypes stand one behind the other, unaligned."""
    assert list(LAYOUT.sizes) == ["float32", "float64"]
