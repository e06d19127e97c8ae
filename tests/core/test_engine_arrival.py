"""A barrier that adds gradients as they come: one sum, and never half or twice of a push in it.

What it has in common with the other reduction is in test_engine_barrier.py, which runs with both.
"""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core.consistency import Sync
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import NonFiniteGradient
from stepwell_core.gradient import Gradient
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adam
from stepwell_core.push import Staged, Waiting

from tests.core.models import (
    LAYOUT,
    SECOND,
    Worker,
    image,
    new_engine,
    parameters_of,
    random_arrays,
    saved,
    settle,
    through_json,
)

RNG = np.random.default_rng(33)
GRADIENTS = [random_arrays(RNG) for _ in range(12)]
NAMES = ("w-1", "w.1", "w10", "w2")
ONES = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4)}
NAN = {"kernel": np.full((3, 4), np.nan, np.float32), "bias": np.ones(4)}


def barrier(workers, optimizer=None, reduction="arrival", **definition):
    """Return a model with a barrier, and its workers in the order of their names."""
    engine = new_engine(optimizer, consistency=Sync(workers, reduction=reduction), **definition)
    return engine, [Worker(engine, name) for name in NAMES[:workers]]


def moved(engine, before):
    """Return by how much the bias was moved by SGD(0.5): half of the mean."""
    return float((before["bias"] - parameters_of(engine)["bias"])[0])


contributions = st.lists(
    st.tuples(
        st.sets(st.sampled_from(["kernel", "bias"]), min_size=1),
        st.sampled_from([1.0, 0.5, 3.0]) | st.floats(0.01, 100.0),
        st.integers(0, len(GRADIENTS) - 1),
        st.sampled_from(["native", "float16", "float64"]),
        st.sampled_from([None, 1.0, 4.0, 3.0]),
    ),
    min_size=2,
    max_size=4,
)


@given(drawn=contributions, is_dynamic=st.booleans(), steps=st.integers(1, 2), data=st.data())
def test_the_step_is_that_of_the_other_reduction_but_for_rounding(drawn, is_dynamic, steps, data):
    """Partial pushes, weights, formats and loss scales; in the order of names to the bit."""
    rule = Adam(0.01) if data.draw(st.booleans()) else SGD(0.5, loss_scale_factor=2.0)
    optimizer = LossScaleOptimizer(rule) if is_dynamic else rule
    engine, workers = barrier(len(drawn), optimizer)
    other, others = barrier(len(drawn), optimizer, "order")
    arrivals = [data.draw(st.permutations(range(len(drawn)))) for _ in range(steps)]

    for arrival in arrivals:
        for index in arrival:
            push_drawn(workers[index], drawn[index])
        for index in range(len(drawn)):
            push_drawn(others[index], drawn[index])

    scales = {scale for *_, scale in drawn}
    is_alike = all(list(a) == sorted(a) for a in arrivals) and (is_dynamic or len(scales) == 1)
    for name, array in parameters_of(engine).items():
        expected = parameters_of(other)[name]
        if is_alike:
            np.testing.assert_array_equal(array, expected)
        else:
            np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-4)
    assert engine.counters == other.counters


def push_drawn(worker, drawn):
    """Push what was drawn, and write over the buffer as soon as that is allowed."""
    names, weight, index, dtype, scale = drawn
    push = worker.make({n: GRADIENTS[index][n] for n in names}, weight=weight, loss_scale=scale)
    if dtype != "native":
        arenas = {d: array.astype(dtype) for d, array in push.gradient.arenas.items()}
        push = replace(push, gradient=Gradient(push.gradient.layout, arenas, dtype))
    worker.sequence += 1
    outcome = worker.engine.stage(push)
    if outcome == Waiting(is_added=True):
        for array in push.gradient.arenas.values():
            array.fill(np.nan)
    if isinstance(outcome, Staged):
        worker.engine.commit(outcome)


def test_a_gradient_that_was_added_is_held_no_more():
    """Its memory is free while its worker still waits."""
    engine, workers = barrier(2)
    push = workers[0].make(ONES)
    kept = [weakref.ref(array) for array in push.gradient.arenas.values()]

    assert engine.stage(push) == Waiting(is_added=True)
    del push

    assert [reference() for reference in kept] == [None, None]
    assert [waiting.worker for waiting in engine.policy.waiting] == [NAMES[0]]


def test_a_repetition_of_what_was_added_is_not_added_again():
    """Nor is its buffer kept."""
    engine, workers = barrier(2)
    before = parameters_of(engine)
    push = workers[0].make(ONES)

    assert [engine.stage(push) for _ in range(3)] == [Waiting(is_added=True)] * 3
    workers[1].push({name: 3 * array for name, array in ONES.items()})

    assert moved(engine, before) == 1.0


def test_the_sum_lies_in_the_same_memory_in_every_step():
    """Fresh pages cost more than the addition."""
    engine, workers = barrier(2)
    sums = []

    for _ in range(2):
        workers[0].push(ONES)
        staged = engine.stage(workers[1].make(ONES))
        workers[1].sequence += 1
        sums.append(staged.gradient.arenas["float32"])
        engine.commit(staged)

    assert np.shares_memory(*sums)


@pytest.mark.parametrize("ending", ["leaves", "comes back"])
def test_with_one_that_leaves_the_sum_begins_anew(ending):
    """All are forgotten and send again: each has its effect once, that of the old session none."""
    engine, workers = barrier(3)
    before = parameters_of(engine)
    first, second = workers[0].make({n: 8 * a for n, a in ONES.items()}), workers[1].make(ONES)
    engine.stage(first)
    engine.stage(second)

    if ending == "leaves":
        assert workers[0].close() == ()
        contributors = workers[1:]
    else:
        workers[0].open()
        contributors = workers

    assert list(engine.policy.waiting) == []
    assert [worker.push(ONES) for worker in contributors[:-1]] == [
        Waiting(is_added=True) for _ in contributors[:-1]
    ]
    assert contributors[-1].push(ONES).outcome == "applied"
    assert moved(engine, before) == 0.5
    assert settle(engine, second).duplicate


def test_one_that_leaves_without_a_push_completes_the_sum():
    """Nothing of it is in there."""
    engine, workers = barrier(3)
    before = parameters_of(engine)
    workers[2].push(ONES)
    workers[0].push({n: 3 * a for n, a in ONES.items()})

    results = workers[1].close()

    assert [(push.worker, result.outcome) for push, result in results] == [
        ("w-1", "applied"), ("w10", "applied"),
    ]  # fmt: skip
    assert moved(engine, before) == 1.0


@pytest.mark.parametrize("cut", ["finalize", "overwrite", "restore", "restart"])
def test_nothing_that_was_added_outlives_a_cut(cut):
    """The next step has the gradients of the next pushes alone."""
    engine, workers = barrier(2, SGD(0.5, use_ema=True))
    for worker in workers:
        worker.push(ONES)
    workers[0].push({name: 100 * array for name, array in ONES.items()})

    if cut == "finalize":
        engine.finalize()
    elif cut == "overwrite":
        engine.overwrite(LAYOUT.flatten(GRADIENTS[0]), SECOND)
    elif cut == "restore":
        engine.restore(saved(engine), SECOND)
    else:
        engine = workers[0].engine = workers[1].engine = Engine(saved(engine), "2" * 32)
    before = parameters_of(engine)
    workers[0].sequence = 1
    for worker in workers:
        worker.push(ONES)

    assert moved(engine, before) == 0.5


def test_a_staged_step_that_is_never_committed_leaves_nothing_in_the_sum():
    """All send again, and the step is the same."""
    engine, workers = barrier(2)
    pushes = [worker.make(gradient) for worker, gradient in zip(workers, GRADIENTS, strict=False)]
    before = image(engine)
    engine.stage(pushes[0])
    lost = engine.stage(pushes[1])
    arrays = {d: array.copy() for d, array in lost.gradient.arenas.items()}
    engine.withdraw(lost)
    assert image(engine) == before

    engine.stage(pushes[0])
    again = engine.stage(pushes[1])

    assert {d: array.tobytes() for d, array in again.gradient.arenas.items()} == {
        d: array.tobytes() for d, array in arrays.items()
    }


# Loss scales and NaN


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_one_bad_gradient_spoils_its_step_and_no_other(bad):
    """Looked at before it is added: the step is skipped, the scale halved once, the sum is new."""
    engine, workers = barrier(3, LossScaleOptimizer(SGD(0.5), initial_scale=64.0))
    before = parameters_of(engine)

    for index, worker in enumerate(workers):
        worker.push(NAN if index == bad else {name: 64 * a for name, a in ONES.items()})
    skipped = parameters_of(engine)
    for worker in workers:
        worker.push({name: 32 * a for name, a in ONES.items()})

    np.testing.assert_array_equal(skipped["bias"], before["bias"])
    assert engine.loss_scale == 32.0
    assert moved(engine, before) == 0.5


def test_a_bad_gradient_that_is_forgotten_spoils_nothing():
    """Its worker opened another session before the step."""
    engine, workers = barrier(2, LossScaleOptimizer(SGD(0.5), initial_scale=64.0))
    before = parameters_of(engine)
    workers[0].push(NAN)

    workers[0].open()
    for worker in workers:
        worker.push({name: 64 * a for name, a in ONES.items()})

    assert moved(engine, before) == 0.5
    assert engine.loss_scale == 64.0


@pytest.mark.parametrize("action", ["reject", "drop"])
def test_a_gradient_that_is_refused_is_not_added(action):
    """The sum has what it had."""
    engine, workers = barrier(2, on_nonfinite=action)
    before = parameters_of(engine)
    workers[0].push(ONES)

    if action == "reject":
        with pytest.raises(NonFiniteGradient):
            engine.stage(workers[1].make(NAN))
    else:
        assert workers[1].push(NAN).outcome == "skipped_nonfinite"
    workers[1].push(ONES)

    assert moved(engine, before) == 0.5


def test_a_late_gradient_is_not_added():
    """It was computed at parameters that are no more."""
    engine, workers = barrier(2)
    for worker in workers:
        worker.push(ONES)
    before = parameters_of(engine)
    workers[0].push(ONES, version=1)

    assert workers[1].push(ONES, version=0).outcome == "dropped_late"
    workers[1].push(ONES, version=1)

    assert moved(engine, before) == 0.5


def test_gradients_of_different_fixed_scales_make_one_mean():
    """The scale was changed while one waited: each is divided by its own."""
    engine, workers = barrier(3, SGD(0.5, loss_scale_factor=2.0))
    before = parameters_of(engine)
    workers[0].push({name: a * 2 for name, a in ONES.items()})

    engine.adopt_hyperparameters(*engine.prepare_hyperparameters({"loss_scale_factor": 8.0}))
    workers[1].push({name: a * 8 for name, a in ONES.items()})
    workers[2].push({name: a * 4 for name, a in ONES.items()}, loss_scale=4.0)

    assert moved(engine, before) == 0.5


# Definitions


def test_a_definition_keeps_its_reduction():
    """In checkpoints and in answers; one saved before there was any is in order."""
    definition = Definition("m", LAYOUT, SGD(), consistency=Sync(2, reduction="arrival"))
    value = through_json(definition.to_json())
    old = {**value, "consistency": {"mode": "sync", "workers": 2}}

    assert Definition.from_json(value).consistency == definition.consistency
    assert Definition.from_json(value).differences(definition) == []
    assert Definition.from_json(old).consistency == Sync(2, reduction="order")
    assert Definition.from_json(old).differences(definition) == ["consistency"]
