"""One push: what is decided, what is changed, what is answered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stepwell_core.consistency import Sync
from stepwell_core.engine import Engine
from stepwell_core.errors import (
    CheckpointInvalid,
    Fenced,
    InvalidArgument,
    InvalidInput,
    LayoutMismatch,
    NonFiniteGradient,
    NothingToFinalize,
    PayloadMismatch,
    SequenceGap,
    SessionExpired,
    StaleIncarnation,
    StepwellError,
    UnknownSession,
    VersionsExhausted,
)
from stepwell_core.layout import Layout, Tensor
from stepwell_core.loss_scale import LossScale, LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adagrad, Adam, PerPush
from stepwell_core.push import Staged, Waiting
from stepwell_core.schedules import ExponentialDecay
from stepwell_core.session import Result
from stepwell_core.state import Counters

from tests.core.models import (
    FIRST,
    LAYOUT,
    SECOND,
    Worker,
    copied,
    gradient_of,
    image,
    new_engine,
    parameters_of,
    random_arrays,
    saved,
    settle,
    snapshot_of,
)

RNG = np.random.default_rng(20)
GRADIENTS = [random_arrays(RNG) for _ in range(12)]
ONES = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4)}
NAN = {"kernel": np.full((3, 4), np.nan, np.float32), "bias": np.ones(4)}
FULL = Adam(
    0.01, use_ema=True, ema_overwrite_frequency=5, weight_decay=0.01, gradient_accumulation_steps=2
)
"""Every slot but `velocity_hat`, and counters that run apart."""


# Outcomes


def test_a_push_makes_a_step_and_adds_a_version():
    """The parameters move by the rule; the answer says which version they are."""
    engine = new_engine(SGD(0.5))
    before = parameters_of(engine)

    result = Worker(engine).push(ONES)

    assert result == Result("applied", version=1, parameters_version=1)
    assert engine.counters == Counters(1, 1, 1)
    assert engine.store.number == 1
    for name, array in parameters_of(engine).items():
        np.testing.assert_array_equal(array, before[name] - np.float32(0.5))


def test_staleness_counts_changes_of_the_parameters_since_the_gradient():
    """None, from a worker that never pulled, counts as 0."""
    worker = Worker(new_engine())

    results = [worker.push(ONES, version=version) for version in (0, 0, 1, None)]

    assert [result.staleness for result in results] == [0, 1, 1, 0]


def test_a_partial_push_leaves_the_other_tensors_alone():
    """Missing tensors take no step."""
    engine = new_engine()
    before = parameters_of(engine)

    Worker(engine).push({"bias": np.ones(4)})

    after = parameters_of(engine)
    np.testing.assert_array_equal(after["kernel"], before["kernel"])
    np.testing.assert_array_equal(after["bias"], before["bias"] - 0.5)


def test_a_duplicate_changes_nothing_and_gets_the_first_answer():
    """Also when other pushes came between; other bytes under its number are refused."""
    engine = new_engine(FULL)
    worker = Worker(engine)
    push = worker.make(GRADIENTS[0])
    first = worker.push(GRADIENTS[0])
    Worker(engine, "w1").push(GRADIENTS[1])
    before = image(engine)

    answer = settle(engine, push)
    with pytest.raises(PayloadMismatch, match="other bytes"):
        engine.stage(replace(push, gradient=gradient_of(ONES)))

    assert answer == replace(first, duplicate=True)
    assert image(engine) == before


def test_micro_steps_add_versions_but_leave_the_parameters_version():
    """Nobody downloads the same parameters again."""
    engine = new_engine(SGD(0.5, gradient_accumulation_steps=3))
    worker = Worker(engine)

    results = [worker.push(gradient) for gradient in GRADIENTS[:7]]

    assert [r.outcome for r in results] == ["accumulated", "accumulated", "applied"] * 2 + [
        "accumulated"
    ]
    assert [r.version for r in results] == [1, 2, 3, 4, 5, 6, 7]
    assert [r.parameters_version for r in results] == [0, 0, 3, 3, 3, 6, 6]
    assert engine.counters.iterations == 7
    assert engine.store.number == 6


def test_a_micro_step_does_not_touch_the_parameters_that_a_reader_holds():
    """It needs no buffer, so it publishes none."""
    engine = new_engine(SGD(0.5, gradient_accumulation_steps=2))
    held = engine.store.hold()
    assert held is not None
    before = copied(held.arenas)

    Worker(engine).push(ONES)

    assert engine.store.current is held.arenas
    assert all((held.arenas[dtype] == before[dtype]).all() for dtype in before)


def test_a_reader_keeps_its_version_while_steps_go_on():
    """The arrays in a reader's hands are those of one version."""
    engine = new_engine(FULL)
    worker = Worker(engine)
    held = engine.store.hold()
    assert held is not None
    before = copied(held.arenas)

    for gradient in GRADIENTS:
        worker.push(gradient)

    assert held.number == 0
    assert all((held.arenas[dtype] == before[dtype]).all() for dtype in before)


def test_readers_do_not_change_the_result():
    """In place or into a spare, the step is the same to the bit."""
    alone, watched = new_engine(FULL), new_engine(FULL)
    workers = Worker(alone), Worker(watched)
    held = []

    for number, gradient in enumerate(GRADIENTS):
        workers[0].push(gradient)
        if number % 3 == 0:
            held.append(watched.store.hold())
        workers[1].push(gradient)
        if number % 4 == 0:
            watched.store.release(held.pop())

    assert image(watched) == image(alone)


# Two halves


@pytest.mark.parametrize("optimizer", [SGD(0.5), FULL, LossScaleOptimizer(SGD(0.5))])
@pytest.mark.parametrize("arrays", [ONES, NAN])
def test_stage_alone_changes_nothing_that_lasts(optimizer, arrays):
    """If the journal cannot be written, the model is as it was, and the push may come again."""
    engine = new_engine(optimizer, on_nonfinite="drop")
    worker = Worker(engine)
    for gradient in GRADIENTS[:3]:
        worker.push(gradient)
    before = image(engine)

    staged = engine.stage(worker.make(arrays))

    assert isinstance(staged, Staged)
    assert image(engine) == before
    engine.withdraw(staged)
    again = engine.stage(worker.make(arrays))
    assert isinstance(again, Staged)
    assert again.results[0][1] == staged.results[0][1]


def test_commit_does_exactly_what_was_staged():
    """The results that were promised are the ones that are stored."""
    engine = new_engine(FULL)
    worker = Worker(engine)
    push = worker.make(ONES)
    staged = engine.stage(push)
    assert isinstance(staged, Staged)

    results = engine.commit(staged)

    assert results == staged.results
    assert engine.counters == staged.counters
    assert engine.stage(push) == replace(results[0][1], duplicate=True)


def test_several_pushes_are_staged_and_then_committed_as_if_made_one_by_one():
    """One fsync serves them all: each is decided on what the model will be after those before."""
    rule = Adam(0.1, clipnorm=1.0, use_ema=True, gradient_accumulation_steps=2)
    grouped, single = new_engine(rule), new_engine(rule)
    workers = [Worker(grouped, f"w{n}") for n in range(3)]
    others = [Worker(single, f"w{n}") for n in range(3)]

    for step in range(3):
        gradients = GRADIENTS[step : step + 3]
        pushes = [w.make(g) for w, g in zip(workers, gradients, strict=True)]
        assert all(grouped.can_stage(push) for push in pushes)
        staged = [grouped.stage(push) for push in pushes]
        assert not grouped.can_stage(pushes[0])
        for change in staged:
            grouped.commit(change)
        for index, worker in enumerate(workers):
            worker.sequence += 1
            others[index].push(gradients[index])

    assert image(grouped) == image(single)


def test_what_was_staged_last_is_withdrawn_and_what_came_before_it_stays():
    """The disk was full for the last ones: they come again, the first is made."""
    engine = new_engine()
    workers = [Worker(engine, f"w{n}") for n in range(3)]
    staged = [engine.stage(worker.make(ONES)) for worker in workers]

    engine.withdraw(staged[2])
    engine.withdraw(staged[1])
    engine.commit(staged[0])

    assert engine.counters.version == 1
    assert settle(engine, workers[1].make(ONES)).version == 2


# Refusals


def stale_incarnation(worker, push):
    """It is of a history that was cut."""
    return replace(push, incarnation=SECOND)


def fenced(worker, push):
    """A newer session took the name."""
    worker.open()
    return push


def unknown(worker, push):
    """Nobody opened that session."""
    return replace(push, worker="nobody")


def of_the_future(worker, push):
    """Its epoch was not given away yet."""
    return replace(push, epoch=push.epoch + 1)


def expired(worker, push):
    """Its session was closed."""
    worker.close()
    return push


def gap(worker, push):
    """The one before it is missing."""
    return replace(push, sequence=push.sequence + 1)


def negative(worker, push):
    """Its number is below the first."""
    return replace(push, sequence=-1)


def non_finite(worker, push):
    """It has NaN in it."""
    return replace(push, gradient=gradient_of(NAN))


def undeclared(worker, push):
    """It brings a value that the model did not ask for."""
    return replace(push, hyperparameters={"learning_rate": 0.1})


def from_the_future(worker, push):
    """Its version was not made yet."""
    return replace(push, version=99)


@pytest.mark.parametrize(
    ("breaks", "error"),
    [
        (stale_incarnation, StaleIncarnation),
        (fenced, Fenced),
        (unknown, UnknownSession),
        (of_the_future, UnknownSession),
        (expired, SessionExpired),
        (gap, SequenceGap),
        (negative, InvalidInput),
        (non_finite, NonFiniteGradient),
        (undeclared, InvalidInput),
        (from_the_future, InvalidInput),
    ],
)
def test_a_refused_push_changes_nothing_and_uses_up_no_sequence(breaks, error):
    """The same sequence number is still due."""
    engine = new_engine(FULL)
    worker = Worker(engine)
    worker.push(GRADIENTS[0])
    push = breaks(worker, worker.make(GRADIENTS[1]))
    before = image(engine)

    with pytest.raises(error) as caught:
        engine.stage(push)

    assert type(caught.value) is error
    assert image(engine) == before


NOT_FACTORS = [0.0, -1.0, np.nan, np.inf, -np.inf, 1e-300, 1e300, 1e-45]


@pytest.mark.parametrize("field", ["weight", "loss_scale"])
@pytest.mark.parametrize("value", NOT_FACTORS)
def test_a_factor_that_float32_cannot_hold_is_refused(field, value):
    """1e-300 is finite and > 0, and 0 as a float32: it would fill the model with NaN."""
    engine = new_engine()
    worker = Worker(engine)
    before = image(engine)

    with pytest.raises(InvalidInput, match="float32"):
        engine.stage(worker.make(ONES, **{field: value}))

    assert image(engine) == before


def test_a_stale_incarnation_is_told_before_anything_else():
    """Epochs and sequences mean nothing until the worker knows which history it is in."""
    engine = new_engine()
    worker = Worker(engine)
    worker.push(ONES)

    with pytest.raises(StaleIncarnation) as error:
        engine.stage(worker.make(ONES, incarnation=SECOND, epoch=1, sequence=40))

    assert error.value.details == {
        "incarnation": FIRST, "version": 1, "parameters_version": 1, "last_sequence": 0,
    }  # fmt: skip


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stale_incarnation_says_nothing_about_the_pushes_of_another_session(epoch):
    """The last sequence of another epoch would be taken for the answer to the lost push."""
    engine = new_engine()
    worker = Worker(engine)
    worker.open()
    worker.push(ONES)

    with pytest.raises(StaleIncarnation) as error:
        engine.stage(worker.make(ONES, incarnation=SECOND, epoch=epoch))

    assert error.value.details["last_sequence"] is None


def test_an_older_session_is_fenced_even_for_repetitions():
    """A zombie learns that it is one, whatever it sends."""
    engine = new_engine()
    zombie = Worker(engine)
    push = zombie.make(ONES)
    zombie.push(ONES)
    Worker(engine, "w0")

    with pytest.raises(Fenced):
        engine.stage(push)


# NaN and infinity


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_reject_refuses_a_gradient_that_is_not_finite(bad):
    """The default: the caller is told, and may send another gradient under the same number."""
    engine = new_engine()
    worker = Worker(engine)
    arrays = {**ONES, "bias": np.array([0, bad, 0, 0])}

    with pytest.raises(NonFiniteGradient):
        engine.stage(worker.make(arrays))

    assert worker.push(ONES).outcome == "applied"


def test_drop_settles_a_gradient_that_is_not_finite_without_a_step():
    """It uses up its sequence number and replays as what it was."""
    engine = new_engine(FULL, on_nonfinite="drop")
    worker = Worker(engine)
    worker.push(GRADIENTS[0])
    push = worker.make(NAN)
    before = image(engine)

    result = worker.push(NAN)

    assert result == Result("skipped_nonfinite", 1, 0)
    assert image(engine)[:2] == before[:2]
    assert settle(engine, push) == replace(result, duplicate=True)
    assert worker.push(GRADIENTS[1]).outcome == "applied"


def test_allow_applies_what_comes():
    """For those who want to see NaN spread."""
    engine = new_engine(on_nonfinite="allow")

    result = Worker(engine).push(NAN)

    assert result.outcome == "applied"
    assert np.isnan(parameters_of(engine)["kernel"]).all()
    assert np.isfinite(parameters_of(engine)["bias"]).all()


# Loss scales


@pytest.mark.parametrize("on_nonfinite", ["reject", "drop", "allow"])
def test_a_dynamic_loss_scale_skips_and_halves(on_nonfinite):
    """Whatever `on_nonfinite` says; no version is made."""
    engine = new_engine(LossScaleOptimizer(Adam(), initial_scale=1024.0), on_nonfinite=on_nonfinite)
    worker = Worker(engine)
    before = image(engine)[0]

    results = [worker.push(arrays) for arrays in (NAN, NAN, ONES)]

    assert [r.outcome for r in results] == ["skipped_nonfinite"] * 2 + ["applied"]
    assert [r.version for r in results] == [0, 0, 1]
    assert [r.loss_scale for r in results] == [512.0, 256.0, 256.0]
    assert engine.loss_scale == 256.0
    assert image(engine)[0] != before


def test_a_skipped_step_leaves_every_byte():
    """Slots, average and accumulator too."""
    inner = Adam(0.01, use_ema=True, gradient_accumulation_steps=2)
    engine = new_engine(LossScaleOptimizer(inner))
    worker = Worker(engine)
    worker.push(GRADIENTS[0])
    before = image(engine)[0]

    worker.push(NAN)

    assert image(engine)[0] == before
    assert engine.counters.iterations == 1


def test_a_dynamic_loss_scale_doubles_after_so_many_good_steps():
    """A bad one begins the count again."""
    engine = new_engine(LossScaleOptimizer(SGD(0.5), initial_scale=8.0, dynamic_growth_steps=2))
    worker = Worker(engine)

    scales = [worker.push(arrays).loss_scale for arrays in (ONES, ONES, ONES, NAN, ONES, ONES)]

    assert scales == [8.0, 16.0, 16.0, 8.0, 8.0, 16.0]


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.5),
        SGD(0.5, loss_scale_factor=64.0),
        LossScaleOptimizer(SGD(0.5), initial_scale=64.0),
    ],
)
def test_a_gradient_is_divided_by_the_loss_scale_of_its_own_header(optimizer):
    """The scale may have changed since the worker pulled, or come from the worker alone."""
    engine, plain = new_engine(optimizer), new_engine(SGD(0.5))
    scaled = {name: array * 16 for name, array in GRADIENTS[0].items()}

    Worker(engine).push(scaled, loss_scale=16.0)
    Worker(plain).push(GRADIENTS[0])

    assert image(engine)[0] == image(plain)[0]


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.5, loss_scale_factor=64.0), LossScaleOptimizer(SGD(0.5), initial_scale=64.0)],
)
def test_without_a_header_the_models_own_loss_scale_counts(optimizer):
    """What the pull told the worker."""
    engine, plain = new_engine(optimizer), new_engine(SGD(0.5))

    Worker(engine).push({name: array * 64 for name, array in GRADIENTS[0].items()})
    Worker(plain).push(GRADIENTS[0])

    assert image(engine)[0] == image(plain)[0]


# Hyperparameters that come with each push


@pytest.mark.parametrize(
    ("constant", "declared"),
    [
        (Adam(0.02, beta_1=0.8), Adam(PerPush(), beta_1=PerPush())),
        (Adam(0.02, beta_1=0.8), Adam(0.02, beta_1=PerPush())),
        (Adam(0.02, beta_1=0.8, beta_2=0.9), Adam(PerPush(), beta_1=0.8, beta_2=PerPush())),
    ],
)
def test_values_that_come_with_each_push_equal_a_run_with_constants(constant, declared):
    """To the bit; a learning rate that float32 holds exactly, since a callable's is not rounded."""
    lr = float(np.float32(0.02))
    values = {"learning_rate": lr, "beta_1": 0.8, "beta_2": 0.9}
    values = {name: values[name] for name in declared.declared_per_push}
    one, other = new_engine(replace(constant, learning_rate=lr)), new_engine(declared)
    workers = Worker(one), Worker(other)

    for gradient in GRADIENTS:
        workers[0].push(gradient)
        workers[1].push(gradient, hyperparameters=values)

    assert image(one)[0] == image(other)[0]


@pytest.mark.parametrize(
    "values",
    [{}, {"beta_1": 0.9}, {"learning_rate": 0.1, "beta_1": 0.9}, {"learning_rate": float("nan")}],
)
def test_exactly_the_declared_values_are_taken(values):
    """Missing, other and senseless ones are refused before they use up a number."""
    engine = new_engine(Adam(PerPush()))
    worker = Worker(engine)

    with pytest.raises(InvalidInput):
        engine.stage(worker.make(ONES, hyperparameters=values))

    assert worker.push(ONES, hyperparameters={"learning_rate": 0.1}).outcome == "applied"


# Live hyperparameters


def change(engine: Engine, **values) -> None:
    """Change hyperparameters as the server does: prepare, then adopt."""
    engine.adopt_hyperparameters(*engine.prepare_hyperparameters(values))


def test_live_hyperparameters_count_from_the_next_step_and_add_no_version():
    """Preparing alone changes nothing."""
    engine = new_engine(SGD(0.5))
    worker = Worker(engine)
    worker.push(ONES)
    before = parameters_of(engine)
    prepared = engine.prepare_hyperparameters({"learning_rate": 0.25})
    assert engine.definition.rule.learning_rate == 0.5

    engine.adopt_hyperparameters(*prepared)
    assert engine.counters.version == 1
    worker.push(ONES)

    np.testing.assert_array_equal(parameters_of(engine)["bias"], before["bias"] - 0.25)
    assert engine.definition.to_json()["optimizer"]["config"]["learning_rate"] == 0.25


def test_live_hyperparameters_reach_the_optimizer_inside_a_loss_scale():
    """And leave the loss scale as it is."""
    engine = new_engine(LossScaleOptimizer(SGD(0.5), initial_scale=8.0))

    change(engine, learning_rate=0.25)

    assert engine.definition.optimizer == LossScaleOptimizer(SGD(0.25), initial_scale=8.0)
    assert engine.loss_scale == 8.0


@pytest.mark.parametrize(
    ("optimizer", "values"),
    [
        (SGD(0.5), {"momentum": 0.9}),
        (SGD(0.5, momentum=0.9), {"momentum": 0.0}),
        (Adam(), {"amsgrad": True}),
        (Adam(), {"use_ema": True}),
        (Adam(use_ema=True), {"use_ema": False}),
        (Adam(), {"gradient_accumulation_steps": 2}),
        (Adam(gradient_accumulation_steps=2), {"gradient_accumulation_steps": 3}),
        (Adam(), {"beta_1": PerPush()}),
        (Adam(PerPush()), {"learning_rate": 0.1}),
        (Adam(), {"beta_3": 0.5}),
        (Adam(), {"learning_rate": "fast"}),
        (Adam(), {"learning_rate": float("nan")}),
        (SGD(ExponentialDecay(0.1, 10, 0.5)), {"learning_rate": 0.1}),
    ],
)
def test_hyperparameters_that_cannot_change_are_refused(optimizer, values):
    """Those that the slots or the pushes depend on, those over a schedule, and nonsense."""
    engine = new_engine(optimizer)
    before = image(engine)

    with pytest.raises(InvalidArgument):
        engine.prepare_hyperparameters(values)

    assert image(engine) == before


def test_a_value_that_comes_with_each_push_is_changed_by_those_who_push():
    """The refusal says where; another model, which was the advice once, would be of no help."""
    engine = new_engine(Adam(PerPush()))

    with pytest.raises(InvalidArgument, match=r"brings its own learning_rate.*scheduler"):
        engine.prepare_hyperparameters({"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("optimizer", "values"),
    [
        (SGD(0.5, momentum=0.9), {"momentum": 0.5, "nesterov": True}),
        (Adam(), {"beta_1": 0.5, "global_clipnorm": 1.0, "weight_decay": 0.1}),
        (Adam(use_ema=True), {"ema_momentum": 0.5, "ema_overwrite_frequency": 2}),
    ],
)
def test_hyperparameters_that_may_change_equal_a_model_created_with_them(optimizer, values):
    """Nothing of the old ones stays behind."""
    changed, created = new_engine(optimizer), new_engine(optimizer.with_values(values))
    change(changed, **values)
    workers = Worker(changed), Worker(created)

    for gradient in GRADIENTS[:5]:
        for worker in workers:
            worker.push(gradient)

    assert image(changed)[0] == image(created)[0]


# Finalize and overwrite


def test_finalize_writes_the_average_into_the_parameters():
    """It is a version of its own."""
    engine = new_engine(SGD(0.5, use_ema=True, ema_momentum=0.5))
    worker = Worker(engine)
    for gradient in GRADIENTS[:3]:
        worker.push(gradient)
    average = engine.slot("average")

    counters = engine.finalize()

    assert counters == engine.counters == Counters(4, 4, 3)
    assert engine.store.number == 4
    assert all((engine.store.current[dtype] == average[dtype]).all() for dtype in average)


def test_finalize_without_an_average_changes_the_version_alone():
    """There is nothing to write, so nobody downloads again."""
    engine = new_engine(SGD(0.5))
    Worker(engine).push(ONES)
    before = image(engine)[0]

    counters = engine.finalize()

    assert counters == Counters(2, 1, 1)
    assert image(engine)[0] == before


def test_finalize_before_the_first_push_is_refused():
    """The average is all zeros; it would wipe the model out."""
    engine = new_engine(SGD(0.5, use_ema=True))
    before = image(engine)

    with pytest.raises(NothingToFinalize):
        engine.finalize()

    assert image(engine) == before


def test_overwrite_replaces_the_parameters_and_begins_a_new_history():
    """Slots and sessions stay; a push of the old history is told so, then goes on."""
    engine = new_engine(SGD(0.5, momentum=0.9))
    worker = Worker(engine)
    worker.push(ONES)
    push = worker.make(ONES)
    slots = copied(engine.store.slots["momentum"])
    mine = LAYOUT.flatten(GRADIENTS[5])
    expected = copied(mine)

    counters = engine.overwrite(mine, SECOND)

    assert counters == Counters(2, 2, 1)
    assert all((engine.store.current[dtype] == expected[dtype]).all() for dtype in expected)
    assert all((engine.store.slots["momentum"][dtype] == slots[dtype]).all() for dtype in slots)
    with pytest.raises(StaleIncarnation) as error:
        engine.stage(push)
    assert error.value.details["last_sequence"] == 0
    assert worker.push(ONES).version == 3


def test_overwrite_leaves_the_callers_arrays_alone():
    """They are copied; later steps do not write into them."""
    engine = new_engine()
    mine = LAYOUT.flatten(GRADIENTS[5])
    before = copied(mine)

    engine.overwrite(mine, SECOND)
    Worker(engine).push(ONES)

    assert all((mine[dtype] == before[dtype]).all() for dtype in mine)


MISSHAPEN = [
    {},
    {"float32": np.zeros(12, np.float32)},
    {"float32": np.zeros(1, np.float32), "float64": np.zeros(4)},
    {"float32": np.zeros((3, 4), np.float32), "float64": np.zeros(4)},
    {"float32": np.zeros(12), "float64": np.zeros(4)},
    {"float32": np.zeros(12, np.float32), "float64": np.zeros(4), "float16": np.zeros(1)},
]


@pytest.mark.parametrize("arenas", MISSHAPEN)
def test_overwrite_with_arrays_of_another_layout_changes_nothing(arenas):
    """One element is not spread over a whole model."""
    engine = new_engine()
    before = image(engine)

    with pytest.raises(LayoutMismatch):
        engine.overwrite(arenas, SECOND)

    assert image(engine) == before
    assert engine.store.hold() is not None


# Snapshot and restore


@pytest.mark.parametrize(
    "optimizer",
    [FULL, Adagrad(), LossScaleOptimizer(Adam(), initial_scale=64.0, dynamic_growth_steps=3)],
)
@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_saved_model_goes_on_bit_equal_to_one_that_never_stopped(optimizer, at):
    """In the middle of an accumulation too; sessions go on where they were."""
    engine = new_engine(optimizer)
    workers = [Worker(engine, name) for name in ("w0", "w1")]
    for number in range(at):
        workers[number % 2].push(GRADIENTS[number])

    again = Engine(saved(engine), FIRST)
    for number in range(at, 12):
        workers[number % 2].push(GRADIENTS[number], version=engine.counters.parameters_version)
    for number, worker in enumerate(workers):
        worker.engine, worker.sequence = again, len(range(number, at, 2))
    for number in range(at, 12):
        workers[number % 2].push(GRADIENTS[number], version=again.counters.parameters_version)

    assert image(again) == image(engine)


def test_a_snapshot_is_a_consistent_cut():
    """Steps that go on while it is written out do not reach into it."""
    engine = new_engine(FULL)
    worker = Worker(engine)
    for gradient in GRADIENTS[:3]:
        worker.push(gradient)
    before = image(engine)

    snapshot = snapshot_of(engine)
    for gradient in GRADIENTS[3:]:
        worker.push(gradient)
    change(engine, learning_rate=0.5)
    Worker(engine, "w1")

    arenas = {"": snapshot.parameters.arenas, **snapshot.slots}
    bytes_held = {(n, d): a.tobytes() for n, held in arenas.items() for d, a in held.items()}
    assert (
        bytes_held, snapshot.counters, snapshot.ledger.to_json(), snapshot.definition.to_json(),
        snapshot.incarnation, snapshot.parameters.number,
    ) == before[:6]  # fmt: skip


def test_a_snapshot_is_taken_even_when_slow_readers_hold_every_spare():
    """A checkpoint never has to wait for readers, and what it holds stays as it is."""
    engine = new_engine()
    worker = Worker(engine)
    for gradient in GRADIENTS[:3]:
        assert engine.store.hold() is not None
        worker.push(gradient)
    with pytest.raises(VersionsExhausted):
        engine.store.hold()

    snapshot = snapshot_of(engine)
    before = {dtype: array.copy() for dtype, array in snapshot.parameters.arenas.items()}
    worker.push(GRADIENTS[3])

    assert snapshot.parameters.number == 3
    for dtype, array in snapshot.parameters.arenas.items():
        assert (array == before[dtype]).all()
    engine.store.release(snapshot.parameters)
    assert engine.counters.version == 4


def test_restore_brings_everything_back_under_a_new_incarnation_and_a_new_version():
    """Only the version and the epochs go on, so that neither ever repeats."""
    engine = new_engine(FULL)
    worker = Worker(engine)
    worker.push(GRADIENTS[0])
    state = saved(engine)
    bytes_saved = image(engine)[0]
    for gradient in GRADIENTS[1:6]:
        worker.push(gradient)
    Worker(engine, "w1")

    counters = engine.restore(state, SECOND)

    assert image(engine)[0] == bytes_saved
    assert counters == engine.counters == Counters(7, 7, 1)
    assert engine.store.number == 7
    assert engine.incarnation == SECOND
    assert engine.ledger.sessions["w0"].last_sequence == 0
    assert engine.open_session("w1")[0].epoch == 3


def test_restoring_a_state_of_the_future_goes_on_behind_it():
    """A checkpoint of another run may have a larger version than the model."""
    engine, ahead = new_engine(), new_engine()
    worker = Worker(ahead)
    for gradient in GRADIENTS[:4]:
        worker.push(gradient)

    assert engine.restore(saved(ahead), SECOND).version == 5
    assert engine.open_session("w0")[0].epoch == 2


def test_a_push_of_the_lost_history_is_refused_after_a_restore():
    """Its effect would be a second one, or none that it knows of; the worker decides."""
    engine = new_engine()
    worker = Worker(engine)
    state = saved(engine)
    push = worker.make(ONES)
    worker.push(ONES)

    engine.restore(state, SECOND)

    with pytest.raises(StaleIncarnation) as error:
        engine.stage(push)
    assert error.value.details["last_sequence"] == -1
    assert engine.counters.iterations == 0


def test_restore_copies_what_readers_hold_aside():
    """A pull that is under way ends with the bytes that it began with."""
    engine = new_engine()
    state = saved(engine)
    Worker(engine).push(ONES)
    held = engine.store.hold()
    assert held is not None
    before = copied(held.arenas)

    engine.restore(state, SECOND)

    assert all((held.arenas[dtype] == before[dtype]).all() for dtype in before)


def without_a_slot(state):
    """One slot is missing."""
    return replace(state, slots={n: a for n, a in state.slots.items() if n != "velocity"})


def with_another_slot(state):
    """There is one too many."""
    return replace(state, slots={**state.slots, "accumulator": state.slots["velocity"]})


def with_a_misshapen_slot(state):
    """One slot has one element."""
    return replace(state, slots={**state.slots, "velocity": MISSHAPEN[2]})


def with_misshapen_parameters(state):
    """The parameters have one element."""
    return replace(state, parameters=MISSHAPEN[2])


def with_another_layout(state):
    """The sizes are the same, the shapes are not."""
    layout = Layout([Tensor("kernel", (12,), "float32"), Tensor("bias", (4,), "float64")])
    return replace(state, definition=replace(state.definition, layout=layout))


def with_a_loss_scale(state):
    """There is a loss scale that no optimizer asks for."""
    return replace(state, counters=replace(state.counters, loss_scale=LossScale(8.0)))


@pytest.mark.parametrize(
    "breaks",
    [
        without_a_slot, with_another_slot, with_a_misshapen_slot, with_misshapen_parameters,
        with_another_layout, with_a_loss_scale,
    ],
)  # fmt: skip
def test_a_restore_that_fails_changes_nothing(breaks):
    """All or nothing: training goes on as if nobody had asked."""
    engine, untouched = new_engine(FULL), new_engine(FULL)
    workers = Worker(engine), Worker(untouched)
    for worker in workers:
        worker.push(GRADIENTS[0])
    state = breaks(saved(engine))
    before = image(engine)

    with pytest.raises(CheckpointInvalid):
        engine.restore(state, SECOND)

    assert image(engine) == before
    for worker in workers:
        worker.push(GRADIENTS[1])
    assert image(engine) == image(untouched)


@pytest.mark.parametrize("breaks", [without_a_slot, with_a_misshapen_slot])
def test_an_engine_does_not_begin_with_a_state_that_is_not_whole(breaks):
    """Fresh slots under trained parameters would be a silent loss."""
    with pytest.raises(CheckpointInvalid):
        Engine(breaks(saved(new_engine(FULL))), FIRST)


def test_restoring_other_hyperparameters_brings_those_of_the_checkpoint_back():
    """Live changes since then belong to the history that was cut."""
    engine = new_engine(SGD(0.5))
    state = saved(engine)
    change(engine, learning_rate=0.25)

    engine.restore(state, SECOND)

    assert engine.definition.rule.learning_rate == 0.5


# Slots and sessions


def test_a_slot_is_given_as_a_copy():
    """It may be read while training goes on."""
    engine = new_engine(SGD(0.5, momentum=0.9))
    worker = Worker(engine)
    worker.push(ONES)

    slot = engine.slot("momentum")
    worker.push(ONES)

    assert (slot["float64"] == -0.5).all()


def test_an_unknown_slot_is_refused_with_the_names_of_those_there_are():
    """SGD without momentum has none at all."""
    with pytest.raises(InvalidInput, match="momentum, velocity"):
        new_engine(Adam()).slot("moment")
    with pytest.raises(InvalidInput, match="none"):
        new_engine(SGD()).slot("momentum")


def test_closing_a_session_that_is_not_open_is_refused():
    """The caller learns which of the three it was."""
    engine = new_engine()
    worker = Worker(engine)
    first = worker.session.epoch
    worker.open()
    worker.close()

    with pytest.raises(Fenced):
        engine.close_session("w0", first)
    with pytest.raises(UnknownSession):
        engine.close_session("w1", 1)
    with pytest.raises(SessionExpired):
        worker.close()


def test_counters_survive_json():
    """With and without a loss scale."""
    for counters in (Counters(3, 2, 1), Counters(3, 2, 1, LossScale(8.0, 4))):
        assert Counters.from_json(counters.to_json()) == counters


def test_every_refusal_of_a_push_has_a_code_of_its_own():
    """The server answers by code; none of these is the bare base class."""
    for breaks, error in [(gap, SequenceGap), (fenced, Fenced), (expired, SessionExpired)]:
        engine = new_engine(consistency=Sync(1))
        worker = Worker(engine)
        push = breaks(worker, worker.make(ONES))

        with pytest.raises(StepwellError) as caught:
            engine.stage(push)

        assert caught.value.code == error.code != StepwellError.code


def test_a_push_that_waits_is_not_answered_yet():
    """`Waiting` is no result: nothing was used up."""
    engine = new_engine(consistency=Sync(2))

    assert Worker(engine).push(ONES) == Waiting()
    assert engine.ledger.sessions["w0"].last_sequence == -1
