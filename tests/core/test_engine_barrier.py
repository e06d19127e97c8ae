"""Pushes that wait for each other, and the one step that they make."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core.aggregation import RunningSum
from stepwell_core.consistency import Sync
from stepwell_core.engine import Engine
from stepwell_core.errors import (
    Fenced,
    InvalidInput,
    PushInFlight,
    SequenceGap,
    SessionExpired,
    StaleIncarnation,
)
from stepwell_core.layout import Layout, Tensor
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adam, PerPush
from stepwell_core.push import LEAST_WEIGHT, MOST_WEIGHT, Staged, Waiting
from stepwell_core.state import Counters

from tests.core.models import (
    FIRST,
    LAYOUT,
    SECOND,
    Worker,
    image,
    new_engine,
    parameters_of,
    random_arrays,
    saved,
    settle,
)

RNG = np.random.default_rng(21)
GRADIENTS = [random_arrays(RNG) for _ in range(12)]
NAMES = ("w-1", "w.1", "w10", "w2")
"""In bytewise order, which is the order of reduction."""
ONES = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4)}
NAN = {"kernel": np.full((3, 4), np.nan, np.float32), "bias": np.ones(4)}


REDUCTION = "order"
WAITING = Waiting()


@pytest.fixture(scope="module", params=["order", "arrival"], autouse=True)
def reduction(request):
    """Run every test with both reductions; those that are about one say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "REDUCTION", request.param)
        patch.setitem(globals(), "WAITING", Waiting(is_added=request.param == "arrival"))
        yield


def sync_engine(
    workers, optimizer=None, reduction=None, **definition
) -> tuple[Engine, list[Worker]]:
    """Return a model with a barrier, and its workers in the order of their names."""
    consistency = Sync(workers, reduction=reduction or REDUCTION)
    engine = new_engine(optimizer, consistency=consistency, **definition)
    return engine, [Worker(engine, name) for name in NAMES[:workers]]


def weighted_mean(contributions, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    """`sum(weight * g) / sum(weight)`, tensor by tensor over those who sent it, left to right."""
    means = {}
    for tensor in layout.tensors:
        dtype = np.dtype(tensor.dtype).type
        sent = [(w, arrays[tensor.name]) for arrays, w in contributions if tensor.name in arrays]
        if not sent:
            continue
        total = dtype(sent[0][0]) * sent[0][1]
        for weight, array in sent[1:]:
            total = total + dtype(weight) * array
        weight_sum = 0.0
        for weight, _ in sent:
            weight_sum += weight
        means[tensor.name] = total / dtype(weight_sum)
    return means


# The step


def test_the_last_push_makes_one_step_and_all_are_answered():
    """One version, in the order of the workers' names."""
    engine, workers = sync_engine(3)
    pushes = [worker.make(gradient) for worker, gradient in zip(workers, GRADIENTS, strict=False)]

    assert engine.stage(pushes[2]) == engine.stage(pushes[0]) == WAITING
    staged = engine.stage(pushes[1])

    assert isinstance(staged, Staged)
    results = engine.commit(staged)
    assert [push.worker for push, _ in results] == list(NAMES[:3])
    assert {(result.outcome, result.version) for _, result in results} == {("applied", 1)}
    assert engine.counters == Counters(1, 1, 1)


@pytest.mark.parametrize("arrival", list(itertools.permutations(range(3))))
def test_the_step_does_not_depend_on_the_order_of_arrival(arrival):
    """The same bytes in every run: gradients whose sum does depend on the order."""
    engine, workers = sync_engine(3, Adam(0.01), "order")
    other, others = sync_engine(3, Adam(0.01), "order")

    for step in range(3):
        for index in arrival:
            workers[index].push(GRADIENTS[3 * step + index])
        for index in range(3):
            others[index].push(GRADIENTS[3 * step + index])

    assert image(engine)[:2] == image(other)[:2]


contributions = st.lists(
    st.tuples(
        st.sets(st.sampled_from(["kernel", "bias"]), min_size=1),
        st.sampled_from([1.0, 0.5, 3.0, 0.1, 64.0]) | st.floats(0.01, 100.0),
        st.integers(0, len(GRADIENTS) - 1),
    ),
    min_size=2,
    max_size=4,
)


@given(drawn=contributions, data=st.data())
def test_the_aggregate_is_the_weighted_mean_to_the_bit(drawn, data):
    """In worker order, whatever the order of arrival, with partial pushes and any weights."""
    engine, workers = sync_engine(len(drawn), reduction="order")
    before = parameters_of(engine)
    sent = [
        ({name: GRADIENTS[index][name] for name in names}, weight) for names, weight, index in drawn
    ]

    for index in data.draw(st.permutations(range(len(drawn)))):
        arrays, weight = sent[index]
        workers[index].push(arrays, weight=weight)

    mean = weighted_mean(sent)
    after = parameters_of(engine)
    for name, array in before.items():
        expected = array - mean[name] * array.dtype.type(0.5) if name in mean else array
        np.testing.assert_array_equal(after[name], expected)
    assert engine.counters.version == 1


@pytest.mark.oracle
def test_a_step_of_three_workers_equals_one_process_with_the_mean_gradient():
    """What a single-process Keras user gets who averages the gradients himself."""
    pytest.importorskip("keras", reason="Keras is the oracle")
    from tests.core.keras_oracle import KerasModel

    optimizer = Adam(0.01, weight_decay=0.004)
    engine, workers = sync_engine(3, optimizer)
    config = engine.definition.to_json()["optimizer"]
    keras_model = KerasModel(parameters_of(engine), config)

    for step in range(4):
        gradients = GRADIENTS[3 * step : 3 * step + 3]
        for worker, gradient in zip(reversed(workers), reversed(gradients), strict=True):
            worker.push(gradient)
        is_arrival = engine.definition.consistency.adds_on_arrival
        summed = reversed(gradients) if is_arrival else gradients  # the last bits depend on it
        keras_model.apply(weighted_mean([(gradient, 1.0) for gradient in summed]))

    for name, array in parameters_of(engine).items():
        np.testing.assert_array_equal(array, keras_model.parameters[name])


def test_the_weight_of_a_step_with_one_push_does_not_matter():
    """A mean of one is that one, to the bit."""
    engine, (worker,) = sync_engine(1, reduction="order")
    plain, (other,) = sync_engine(1, reduction="order")

    worker.push(GRADIENTS[0], weight=0.1)
    other.push(GRADIENTS[0])

    assert image(engine)[0] == image(plain)[0]


def test_accumulation_counts_steps_of_the_barrier():
    """A micro-step is one mean of all workers; nobody is late after it."""
    engine, workers = sync_engine(2, SGD(0.5, gradient_accumulation_steps=2))

    outcomes = []
    for step in range(4):
        for index, worker in enumerate(workers):
            worker.push(GRADIENTS[2 * step + index], version=engine.counters.parameters_version)
        outcomes.append(engine.ledger.sessions["w.1"].last_result.outcome)

    assert outcomes == ["accumulated", "applied"] * 2
    assert engine.counters == Counters(4, 4, 4)


def test_values_that_come_with_each_push_are_the_first_contributors():
    """In worker order, not in the order of arrival."""
    engine, workers = sync_engine(2, SGD(PerPush()))
    before = parameters_of(engine)

    workers[1].push(ONES, hyperparameters={"learning_rate": 4.0})
    workers[0].push(ONES, hyperparameters={"learning_rate": 0.5})

    np.testing.assert_array_equal(parameters_of(engine)["bias"], before["bias"] - 0.5)


# Loss scales and NaN


def test_one_bad_contributor_skips_the_step_and_halves_once():
    """All are told the new scale, and that nothing was applied."""
    engine, workers = sync_engine(3, LossScaleOptimizer(SGD(0.5), initial_scale=64.0))
    before = image(engine)[0]
    pushes = [w.make(a) for w, a in zip(workers, (NAN, ONES, NAN), strict=True)]

    for push in pushes:
        settle(engine, push)

    assert image(engine)[0] == before
    assert engine.loss_scale == 32.0
    assert engine.counters.version == 0
    answers = [settle(engine, push) for push in pushes]
    assert {(r.outcome, r.loss_scale, r.duplicate) for r in answers} == {
        ("skipped_nonfinite", 32.0, True)
    }


def test_each_gradient_is_divided_by_its_own_loss_scale():
    """A worker that pulled before the scale changed is not applied twice as strongly."""
    engine, workers = sync_engine(2, LossScaleOptimizer(SGD(0.5), initial_scale=64.0))
    before = parameters_of(engine)

    workers[0].push({n: a * 32 for n, a in ONES.items()}, loss_scale=32.0)
    workers[1].push({n: a * 64 * 3 for n, a in ONES.items()})

    np.testing.assert_array_equal(parameters_of(engine)["bias"], before["bias"] - 1.0)


def test_a_fixed_loss_scale_is_taken_out_of_the_mean_once():
    """As Keras does with the mean gradient; division by 3 after it or before it differs."""
    engine, workers = sync_engine(2, SGD(0.5, loss_scale_factor=3.0))
    before = parameters_of(engine)

    for worker, gradient in zip(workers, GRADIENTS, strict=False):
        worker.push(gradient)

    mean = weighted_mean([(gradient, 1.0) for gradient in GRADIENTS[:2]])
    for name, array in parameters_of(engine).items():
        scale = array.dtype.type(3)
        expected = before[name] - (mean[name] / scale) * array.dtype.type(0.5)
        np.testing.assert_array_equal(array, expected)


def test_a_changed_loss_scale_does_not_reach_gradients_that_wait():
    """They were made with the old one."""
    engine, workers = sync_engine(2, SGD(0.5, loss_scale_factor=2.0))
    before = parameters_of(engine)
    workers[0].push({n: a * 2 for n, a in ONES.items()})

    engine.adopt_hyperparameters(*engine.prepare_hyperparameters({"loss_scale_factor": 8.0}))
    workers[1].push({n: a * 8 for n, a in ONES.items()})

    np.testing.assert_array_equal(parameters_of(engine)["bias"], before["bias"] - 0.5)


def test_changed_hyperparameters_count_for_pushes_that_wait():
    """They are the model's at the moment of the step."""
    engine, workers = sync_engine(2, SGD(0.5))
    before = parameters_of(engine)
    workers[0].push(ONES)

    engine.adopt_hyperparameters(*engine.prepare_hyperparameters({"learning_rate": 0.25}))
    workers[1].push(ONES)

    np.testing.assert_array_equal(parameters_of(engine)["bias"], before["bias"] - 0.25)


def test_drop_lets_a_worker_try_again_before_the_barrier_goes_on():
    """What was dropped is no contribution."""
    _, workers = sync_engine(2, on_nonfinite="drop")

    assert workers[0].push(NAN).outcome == "skipped_nonfinite"
    assert workers[1].push(ONES) == WAITING
    assert workers[0].push(ONES).outcome == "applied"


# While a push waits


def test_a_retry_of_a_waiting_push_joins_it():
    """It is one contribution, however often it comes."""
    engine, workers = sync_engine(2)
    push = workers[0].make(ONES)
    engine.stage(push)
    before = image(engine)

    answers = [engine.stage(push) for _ in range(3)]

    assert answers == [WAITING] * 3
    assert image(engine) == before
    workers[1].push(ONES)
    assert settle(engine, push).duplicate


@pytest.mark.parametrize("ahead", [1, 2, 40])
def test_another_push_of_a_session_that_waits_is_refused(ahead):
    """One push in flight a session: `push_in_flight`, not a gap that the worker should fill."""
    engine, workers = sync_engine(2)
    workers[0].push(ONES)
    before = image(engine)

    with pytest.raises(PushInFlight):
        engine.stage(workers[0].make(ONES, sequence=ahead))

    assert image(engine) == before


def test_an_old_repetition_is_answered_while_a_push_waits():
    """It is settled; that another waits does not matter."""
    engine, workers = sync_engine(2)
    first = workers[0].make(ONES)
    for worker in workers:
        worker.push(ONES)
    workers[0].push(ONES)

    assert settle(engine, first).duplicate


def test_without_a_waiting_push_a_gap_is_a_gap():
    """Only those who wait are in flight."""
    engine, workers = sync_engine(2)
    workers[1].push(ONES)

    with pytest.raises(SequenceGap):
        engine.stage(workers[0].make(ONES, sequence=1))


def test_a_late_push_is_dropped_and_says_how_late():
    """It uses up its number, replays as what it was, and the worker pulls and goes on."""
    engine, workers = sync_engine(2)
    for worker in workers:
        worker.push(ONES, version=0)
    late = workers[0].make(ONES, version=0)

    result = workers[0].push(ONES, version=0)

    assert (result.outcome, result.staleness, result.version) == ("dropped_late", 1, 1)
    assert settle(engine, late).duplicate
    assert workers[0].push(ONES, version=1) == WAITING


def test_a_staged_step_that_is_never_committed_can_be_made_again():
    """The journal was full: all are told so, all send again, and the step is the same."""
    engine, workers = sync_engine(2)
    pushes = [worker.make(g) for worker, g in zip(workers, GRADIENTS, strict=False)]
    before = image(engine)
    engine.stage(pushes[0])
    staged = engine.stage(pushes[1])
    assert isinstance(staged, Staged)
    engine.withdraw(staged)
    assert image(engine) == before

    assert engine.stage(pushes[1]) == WAITING
    again = engine.stage(pushes[0])

    assert isinstance(again, Staged)
    assert again.results == staged.results
    assert engine.commit(again)
    assert engine.counters.version == 1


# Sessions that come and go


def test_closing_a_session_makes_the_step_that_waited_for_it():
    """Those who wait are answered."""
    engine, workers = sync_engine(3)
    for worker in workers[:2]:
        worker.push(ONES)

    results = workers[2].close()

    assert [(push.worker, result.outcome) for push, result in results] == [
        ("w-1", "applied"), ("w.1", "applied"),
    ]  # fmt: skip
    assert engine.counters.version == 1


def test_closing_a_session_forgets_its_waiting_push():
    """It was not admitted, and `previous` says so to the next session."""
    engine, workers = sync_engine(2)
    workers[0].push(ONES)
    push = workers[0].make(ONES, sequence=0)

    assert workers[0].close() == ()

    assert list(engine.policy.waiting) == []
    with pytest.raises(SessionExpired):
        engine.stage(push)
    workers[0].open()
    assert workers[0].previous.last_sequence == -1


def test_reopening_forgets_the_waiting_push_of_the_old_session():
    """It may be made again under the new one, and counts once."""
    engine, workers = sync_engine(2)
    before = parameters_of(engine)
    old = workers[0].make(ONES)
    workers[0].push(ONES)

    workers[0].open()

    assert workers[0].previous.last_sequence == -1
    with pytest.raises(Fenced):
        engine.stage(old)
    assert workers[1].push(ONES) == WAITING
    assert workers[0].push(ONES).outcome == "applied"
    np.testing.assert_array_equal(parameters_of(engine)["bias"], before["bias"] - 0.5)


def test_the_barrier_grows_back_when_a_worker_returns():
    """While it is away the others go on."""
    _, workers = sync_engine(2)
    for worker in workers:
        worker.push(ONES)
    workers[1].close()
    assert workers[0].push(ONES).outcome == "applied"

    workers[1].open()

    assert workers[0].push(ONES) == WAITING
    assert workers[1].push(ONES).outcome == "applied"


@pytest.mark.parametrize("cut", ["restart", "restore", "overwrite"])
def test_a_barrier_that_shrank_is_as_small_after_a_cut(cut):
    """The one who stayed does not wait for ever for the one who left."""
    engine, workers = sync_engine(2)
    workers[1].close()

    if cut == "restart":
        engine = workers[0].engine = Engine(saved(engine), FIRST)
    elif cut == "restore":
        engine.restore(saved(engine), SECOND)
    else:
        engine.overwrite(LAYOUT.flatten(GRADIENTS[0]), SECOND)

    assert workers[0].push(ONES).outcome == "applied"


@pytest.mark.parametrize("cut", ["restart", "restore", "overwrite"])
def test_pushes_that_wait_do_not_outlive_a_cut(cut):
    """They were not admitted; a resend is, under the new incarnation if there is one."""
    engine, workers = sync_engine(2)
    push = workers[0].make(ONES)
    engine.stage(push)

    if cut == "restart":
        engine = Engine(saved(engine), FIRST)
    elif cut == "restore":
        engine.restore(saved(engine), SECOND)
    else:
        engine.overwrite(LAYOUT.flatten(GRADIENTS[0]), SECOND)

    assert list(engine.policy.waiting) == []
    if cut != "restart":
        with pytest.raises(StaleIncarnation) as error:
            engine.stage(push)
        assert error.value.details["last_sequence"] == -1
    workers[0].engine = workers[1].engine = engine
    assert workers[0].push(ONES) == WAITING
    assert workers[1].push(ONES).outcome == "applied"


def test_finalize_makes_waiting_pushes_late():
    """Their gradients were computed at parameters that are no more."""
    engine, workers = sync_engine(2, SGD(0.5, use_ema=True))
    for worker in workers:
        worker.push(ONES, version=0)
    waiting = workers[0].make(ONES, version=1)
    workers[0].push(ONES, version=1)

    engine.finalize()

    assert list(engine.policy.waiting) == []
    assert settle(engine, waiting).outcome == "dropped_late"
    assert workers[1].push(ONES, version=2) == WAITING
    assert workers[0].push(ONES, version=2).outcome == "applied"


def test_finalize_without_an_average_leaves_waiting_pushes_alone():
    """No byte changed, so nobody is late."""
    engine, workers = sync_engine(2)
    workers[0].push(ONES, version=0)

    engine.finalize()

    assert workers[1].push(ONES, version=0).outcome == "applied"


def test_many_workers_with_many_tensors_in_all_orders_make_the_same_model():
    """A longer run with joining and leaving: arrival alone differs between the two."""
    layout = Layout([Tensor(f"t{i}", (5,), ("float32", "float64")[i % 2]) for i in range(6)])
    rng = np.random.default_rng(5)
    rounds = [[random_arrays(rng, layout) for _ in NAMES] for _ in range(6)]
    images = []
    for seed in (1, 2):
        order = np.random.default_rng(seed)
        engine = new_engine(Adam(0.01, global_clipnorm=0.5), layout=layout, consistency=Sync(4))
        workers = {name: Worker(engine, name) for name in NAMES}
        for number, gradients in enumerate(rounds):
            if number == 3:
                workers.pop("w10").close()
            for index in order.permutation(4):
                if NAMES[index] in workers:
                    workers[NAMES[index]].push(gradients[index], weight=float(index + 1))
        assert engine.counters.version == 6
        images.append(image(engine)[:2])

    assert images[0] == images[1]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_sum_that_memory_runs_out_for_leaves_nothing_in_the_next_one(monkeypatch, fails_at):
    """Whoever was in it comes again, and counts once."""
    engine, workers = sync_engine(3, SGD(0.5))
    other, others = sync_engine(3, SGD(0.5))
    add, calls = RunningSum.add, 0

    def fails_once(*arguments, **options):
        nonlocal calls
        calls += 1
        add(*arguments, **options)  # half of it may have been added by then
        if calls == fails_at:
            raise MemoryError

    with monkeypatch.context() as patch, contextlib.suppress(MemoryError):
        patch.setattr(RunningSum, "add", fails_once)
        for worker, gradient in zip(workers, GRADIENTS, strict=False):
            engine.stage(worker.make(gradient))
    forgotten = list(engine.policy.waiting)
    for own, theirs, gradient in zip(workers, others, GRADIENTS, strict=False):
        own.push(gradient)
        theirs.push(gradient)

    assert forgotten == []
    assert engine.counters.version == 1
    assert image(engine) == image(other)


@pytest.mark.parametrize("weight", [LEAST_WEIGHT, MOST_WEIGHT])
def test_the_largest_and_smallest_weights_make_the_same_step_as_any_other(weight):
    """Their sum stays in float32; what would not is refused, or two pushes could spoil a model."""
    engine, workers = sync_engine(3, SGD(0.5))
    plain, others = sync_engine(3, SGD(0.5))
    for own, other, gradient in zip(workers, others, GRADIENTS, strict=False):
        own.push(gradient, weight=weight)
        other.push(gradient)

    for name, array in parameters_of(engine).items():
        np.testing.assert_allclose(array, parameters_of(plain)[name], rtol=1e-6)
    for beyond in (np.nextafter(LEAST_WEIGHT, 0), np.nextafter(MOST_WEIGHT, np.inf), 3e38):
        with pytest.raises(InvalidInput, match="weight"):
            engine.stage(workers[0].make(GRADIENTS[0], weight=float(beyond)))
