"""What a journal says of a run, made again, is the run: every bit, every number, every session."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import numpy as np
import pytest
from stepwell_core import record
from stepwell_core.consistency import Buffered, Sync
from stepwell_core.engine import Engine
from stepwell_core.errors import JournalInvalid
from stepwell_core.gradient import Gradient
from stepwell_core.layout import Layout, Tensor
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adagrad, Adam, PerPush
from stepwell_core.record import (
    ConsistencyChanged,
    Finalized,
    OptimizerChanged,
    SessionClosed,
    SessionOpened,
)
from stepwell_core.replay import replay
from stepwell_core.schedules import ExponentialDecay

from tests.core.journaled import Journaled, lasting
from tests.core.models import FIRST, LAYOUT, Worker, image, new_engine, random_arrays

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


def two_steps(optimizer=None):
    """Return an engine at version 0, and records: a session, two steps."""
    journaled = Journaled(new_engine(optimizer or Adam(0.1)))
    worker = Worker(journaled.engine)
    for gradient in GRADIENTS[:2]:
        worker.push(gradient)
    return Engine(journaled.state, FIRST), [
        (msgpack.unpackb(header), bytearray(payload)) for header, payload in journaled.records
    ]


def replay_all(engine, records):
    """Make records again."""
    for header, payload in records:
        replay(engine, record.read(header, memoryview(payload), engine.layout))


def value_at(header, path, value):
    """Put a value deep into a header."""
    for key in path[:-1]:
        header = header[key]
    header[path[-1]] = value


@pytest.mark.parametrize("part", ["constants", "rule"])
@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"\0" * 4 * 40], ids=len)
def test_scalars_of_another_length_never_reach_a_kernel(part, content):
    """It would read behind their end: parameters out of the heap, others each time."""
    engine, records = two_steps()
    value_at(records[1][0], ("scalars", part, "float32"), content)
    before = image(engine)

    with pytest.raises(JournalInvalid, match="scalars"):
        replay_all(engine, records)

    assert image(engine)[0] == before[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("scalars", "updates"), False),
        (("scalars", "overwrites"), True),
        (("counters", "version"), 2),
        (("counters", "version"), 0),
        (("counters", "parameters_version"), 0),
        (("counters", "iterations"), 0),
        (("counters", "loss_scale"), {"scale": 2.0, "good_steps": 0}),
        (("results", 0, 0), "nobody"),
        (("results", 0, 1), 2),
        (("results", 0, 2), 1),
        (("results", 0), ["w0", 1, 0, "f", "unheard of", 1, 1, 0, None]),
        (("weight",), 1.0),
        (("results",), [["w0", 1, 0, "f", "applied", 1, 1, 0, None]] * 2),
    ],
    ids=str,
)
def test_a_step_that_does_not_come_next_is_refused(path, value):
    """By its numbers, its workers, or what the optimizer does not have; nothing is written."""
    engine, records = two_steps()
    value_at(records[1][0], path, value)
    before = image(engine)

    with pytest.raises(JournalInvalid):
        replay_all(engine, records)

    assert (image(engine)[0], engine.counters.version) == (before[0], 0)


def test_a_record_that_is_left_out_or_comes_twice_or_early_is_refused():
    """A journal that goes on from another checkpoint is not made on top of this one."""
    for wrong in ([0, 2], [0, 1, 1], [0, 2, 1], [1]):
        engine, records = two_steps()
        with pytest.raises(JournalInvalid):
            replay_all(engine, [records[number] for number in wrong])


def test_an_optimizer_of_another_kind_is_refused():
    """Its slots are not the model's; the steps after it could not be made."""
    for rule in (SGD(0.5), Adam(0.1, use_ema=True), Adam(0.1, amsgrad=True), Adam(PerPush())):
        engine, _ = two_steps()
        with pytest.raises(JournalInvalid, match="cannot change"):
            replay(engine, OptimizerChanged(rule))


def test_the_mode_does_not_change_while_gradients_are_gathered():
    """They would be gone."""
    journaled = Journaled(new_engine(SGD(0.5), consistency=Buffered(3)))
    Worker(journaled.engine).push(GRADIENTS[0], version=0)

    with pytest.raises(JournalInvalid, match="wait for their step"):
        replay(journaled.recovered(), ConsistencyChanged(Sync(2)))


def test_the_layout_of_these_tests_has_two_arenas():
    """So that payloads of both dtypes stand one behind the other, unaligned."""
    assert list(LAYOUT.sizes) == ["float32", "float64"]
