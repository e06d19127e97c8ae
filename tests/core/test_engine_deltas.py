"""Deltas: what local steps changed, taken as the gradient `-delta`, to the bit.

Sources: McMahan et al., 2017, for the mean of the workers' parameters; Reddi et al., 2021, for the
pseudo-gradient of any optimizer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stepwell_core import state as state_module
from stepwell_core.consistency import Sync
from stepwell_core.errors import MixedKinds, NonFiniteGradient, PayloadMismatch
from stepwell_core.gradient import Gradient
from stepwell_core.layout import Layout, Tensor
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adagrad, Adam
from stepwell_core.pipeline import Pipeline
from stepwell_core.push import Waiting

from tests.core.journaled import Journaled, lasting
from tests.core.models import (
    LAYOUT,
    Worker,
    image,
    new_engine,
    parameters_of,
    random_arrays,
    settle,
)

DELTAS = [random_arrays(np.random.default_rng(seed)) for seed in range(8)]
NAN = {"kernel": np.full((3, 4), np.nan, np.float32), "bias": np.ones(4)}
RULES = {
    "sgd": SGD(1.0),
    "nesterov": SGD(0.7, momentum=0.9, nesterov=True, weight_decay=0.01, clipvalue=0.5),
    "adagrad": Adagrad(0.1, clipnorm=0.5, gradient_accumulation_steps=2),
    "adam": Adam(0.01, global_clipnorm=1.0, use_ema=True, ema_overwrite_frequency=2, amsgrad=True),
}


@pytest.fixture(scope="module", autouse=True)
def plain_loops():
    """Run the loops as plain Python: there are many kernels here, and few elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "Pipeline", partial(Pipeline, compiled=False))
        yield


def negative(arrays):
    """Return `-delta`, whose zeros have the other sign too."""
    return {name: -array for name, array in arrays.items()}


def arrays_of(engine):
    """Return the bytes of parameters and slots, and the counters."""
    return image(engine)[:2]


def as_dtype(push, dtype):
    """Return a push whose payload is of another dtype."""
    if dtype == "native":
        return push
    arenas = {name: array.astype(dtype) for name, array in push.gradient.arenas.items()}
    return replace(push, gradient=Gradient(push.gradient.layout, arenas, dtype))


def barrier(workers=2, optimizer=None, reduction="order", **fields):
    """Return a model with a barrier and its workers."""
    engine = new_engine(optimizer, consistency=Sync(workers, reduction=reduction), **fields)
    return engine, [Worker(engine, f"w{number}") for number in range(workers)]


# A delta is the gradient -delta


@settings(max_examples=40)
@given(
    rule=st.sampled_from(sorted(RULES)),
    drawn=st.lists(
        st.tuples(
            st.integers(0, len(DELTAS) - 1),
            st.sampled_from([0.0, 1.0, 1e-3, 1e30]),
            st.sets(st.sampled_from(["kernel", "bias"]), min_size=1),
            st.sampled_from(["native", "float32", "float64"]),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_a_delta_is_its_negative_as_a_gradient_to_the_bit(rule, drawn):
    """Through clipping, decay, momentum, average, accumulation; of some tensors, of any dtype."""
    deltas, gradients = new_engine(RULES[rule]), new_engine(RULES[rule])
    one, other = Worker(deltas), Worker(gradients)

    for index, factor, names, dtype in drawn:
        sent = {n: (DELTAS[index][n] * factor).astype(DELTAS[index][n].dtype) for n in names}
        for worker, push in (
            (one, one.make(sent, kind="delta")),
            (other, other.make(negative(sent))),
        ):
            settle(worker.engine, as_dtype(push, dtype))
            worker.sequence += 1

    assert arrays_of(deltas) == arrays_of(gradients)


@example(rule="sgd", reduction="order", weights=[1.0, 1.0])
@example(rule="sgd", reduction="arrival", weights=[1.0, 1.0])
@settings(max_examples=25)
@given(
    rule=st.sampled_from(sorted(RULES)),
    reduction=st.sampled_from(["order", "arrival"]),
    weights=st.lists(st.sampled_from([1.0, 0.1, 3.0, 64.0]), min_size=1, max_size=4),
)
def test_the_mean_of_deltas_is_that_of_their_negatives_to_the_bit(rule, reduction, weights):
    """Zeros keep their sign: where two deltas cancel each other, and where nothing was trained."""
    deltas, ones = barrier(len(weights), RULES[rule], reduction)
    gradients, others = barrier(len(weights), RULES[rule], reduction)
    sent = [
        {**DELTAS[index // 2], "bias": np.float64([1, -1, 0, index]) * (-1) ** index}
        for index in range(len(weights))
    ]

    for engine in (deltas, gradients):
        engine.store.current["float64"][...] = -0.0  # the only number that tells 0 from -0

    for index, weight in enumerate(weights):
        ones[index].push(sent[index], weight=weight, kind="delta")
        others[index].push(negative(sent[index]), weight=weight)

    assert arrays_of(deltas) == arrays_of(gradients)
    assert deltas.counters.version == 1


# Federated averaging


@pytest.mark.parametrize("reduction", ["order", "arrival"])
@pytest.mark.parametrize("count", [2, 4])
def test_with_learning_rate_one_the_step_is_the_mean_of_the_workers_parameters(count, reduction):
    """To the bit, where no difference or sum has to be rounded: on a grid, of 2 or 4 workers."""
    layout = Layout([Tensor("w", (1000,), "float32")])
    engine, workers = barrier(count, SGD(1.0), reduction, layout=layout)
    rng = np.random.default_rng(5)
    grid = [rng.integers(-4096, 4096, 1000).astype(np.float32) / 256 for _ in range(count + 1)]
    engine.store.current["float32"][...] = grid[0]

    for worker, local in zip(workers, grid[1:], strict=True):
        worker.push({"w": local - grid[0]}, kind="delta")

    mean = sum(local.astype(np.float64) for local in grid[1:]) / count
    assert parameters_of(engine)["w"].tobytes() == mean.astype(np.float32).tobytes()


def test_a_step_of_deltas_is_the_formula_of_federated_averaging():
    """`w + sum(n_k * (w_k - w)) / sum(n_k)` with any numbers, each operation in float32."""
    engine, workers = barrier(3, SGD(1.0))
    before, counts = parameters_of(engine), [600.0, 7.0, 31.0]
    locals_ = [{n: before[n] + d[n] for n in before} for d in DELTAS[:3]]

    for worker, local, count in zip(workers, locals_, counts, strict=True):
        worker.push({n: local[n] - before[n] for n in before}, weight=count, kind="delta")

    for name, array in parameters_of(engine).items():
        number = array.dtype.type
        total = number(counts[0]) * (locals_[0][name] - before[name])
        for local, count in zip(locals_[1:], counts[1:], strict=True):
            total = total + number(count) * (local[name] - before[name])
        np.testing.assert_array_equal(array, before[name] + total / number(sum(counts)))
        mean = np.average([local[name] for local in locals_], axis=0, weights=counts)
        np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-6)


# Loss scales and NaN


def test_a_delta_is_divided_by_no_loss_scale():
    """Neither by the optimizer's, nor by one that the push says, nor by the dynamic one."""
    rules = (SGD(0.5, loss_scale_factor=8.0), LossScaleOptimizer(SGD(0.5), initial_scale=64.0))
    for rule in rules:
        for said in (None, 4.0):
            engine, plain = new_engine(rule), new_engine(SGD(0.5))

            Worker(engine).push(DELTAS[0], kind="delta", loss_scale=said)
            Worker(plain).push(negative(DELTAS[0]))

            assert image(engine)[0] == image(plain)[0]


@pytest.mark.parametrize("reduction", ["order", "arrival"])
def test_a_delta_does_not_move_a_dynamic_loss_scale(reduction):
    """A good one does not count towards its doubling; a bad one is skipped and halves nothing."""
    rule = LossScaleOptimizer(SGD(0.5), initial_scale=64.0, dynamic_growth_steps=2)
    engine, workers = barrier(2, rule, reduction)
    scale = engine.counters.loss_scale
    for delta in DELTAS[:4]:
        for worker in workers:
            worker.push(delta, kind="delta")
    after_good, before = engine.counters, image(engine)[0]

    workers[0].push(NAN, kind="delta")
    skipped = workers[1].push(DELTAS[0], kind="delta")

    assert after_good.version == 4
    assert (skipped.outcome, skipped.loss_scale, skipped.version) == ("skipped_nonfinite", 64.0, 4)
    assert engine.counters == after_good
    assert engine.counters.loss_scale == scale
    assert image(engine)[0] == before
    assert workers[0].push(DELTAS[0], kind="delta") == Waiting(is_added=reduction == "arrival")


def test_a_delta_that_is_not_finite_is_rejected_under_its_own_name():
    """As a gradient is, with nothing changed."""
    engine = new_engine()
    worker = Worker(engine)
    before = image(engine)

    with pytest.raises(NonFiniteGradient, match="The delta of 'kernel'"):
        engine.stage(worker.make(NAN, kind="delta"))

    assert image(engine) == before


# One kind a step


@pytest.mark.parametrize("reduction", ["order", "arrival"])
@pytest.mark.parametrize("kinds", [("gradient", "delta"), ("delta", "gradient")])
def test_a_push_of_another_kind_than_those_that_wait_is_refused(kinds, reduction):
    """Nothing changed and its number is free: as the right kind it completes the step."""
    engine, workers = barrier(2, SGD(1.0), reduction)
    plain, others = barrier(2, SGD(1.0), reduction)
    workers[0].push(DELTAS[0], kind=kinds[0])
    before = image(engine)

    with pytest.raises(MixedKinds, match=f"is a {kinds[0]}. Received: a {kinds[1]}") as refused:
        engine.stage(workers[1].make(DELTAS[1], kind=kinds[1]))

    assert image(engine) == before
    assert refused.value.details == {"expected": kinds[0], "received": kinds[1]}
    assert workers[1].push(DELTAS[1], kind=kinds[0]).outcome == "applied"
    for worker, delta in zip(others, DELTAS, strict=False):
        worker.push(delta, kind=kinds[0])
    assert arrays_of(engine) == arrays_of(plain)


def test_the_kind_may_be_another_in_the_next_step():
    """It is one step's, not the model's."""
    _, workers = barrier(2)

    outcomes = [
        [worker.push(DELTAS[0], kind=kind) for worker in workers][-1].outcome
        for kind in ("delta", "gradient", "delta")
    ]

    assert outcomes == ["applied"] * 3


# Repetitions


def test_the_same_bytes_as_another_kind_are_no_repetition_of_a_settled_push():
    """The first one's result stands."""
    for kinds in (("gradient", "delta"), ("delta", "gradient")):
        engine = new_engine()
        worker = Worker(engine)
        first, other = (worker.make(DELTAS[0], kind=kind) for kind in kinds)
        result = settle(engine, first)
        before = image(engine)

        with pytest.raises(PayloadMismatch, match="another kind"):
            engine.stage(other)

        assert image(engine) == before
        assert settle(engine, first) == replace(result, duplicate=True)


@pytest.mark.parametrize("reduction", ["order", "arrival"])
def test_the_same_bytes_as_another_kind_are_no_repetition_of_a_waiting_push(reduction):
    """Also when its arrays were let go of."""
    engine, workers = barrier(2, reduction=reduction)
    waiting = Waiting(is_added=reduction == "arrival")
    engine.stage(workers[0].make(DELTAS[0], kind="delta"))

    with pytest.raises(PayloadMismatch, match="another kind"):
        engine.stage(workers[0].make(DELTAS[0]))

    assert engine.stage(workers[0].make(DELTAS[0], kind="delta")) == waiting


def test_a_fingerprint_that_is_worked_out_elsewhere_is_of_its_kind_too():
    """The payload's is what a journal checks its bytes with."""
    push = Worker(new_engine()).make(DELTAS[0], kind="delta")
    elsewhere = replace(push, fingerprints=push.gradient.fingerprint)

    assert elsewhere.fingerprint == push.fingerprint == f"delta:{push.payload_fingerprint}"
    assert push.without_arrays().fingerprint == push.fingerprint
    assert replace(push, kind="gradient").fingerprint == push.payload_fingerprint


# The journal


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("reduction", ["order", "arrival", None])
def test_a_run_of_deltas_made_again_ends_with_the_same_bytes(rule, reduction):
    """The record carries the sign; and the kind, for a repetition after the crash."""
    mode = {} if reduction is None else {"consistency": Sync(2, reduction=reduction)}
    journaled = Journaled(new_engine(rule, **mode))
    engine = journaled.engine
    workers = [Worker(engine, name) for name in "ab"]
    for step in range(4):
        for index, worker in enumerate(workers):
            worker.push(DELTAS[(step + 3 * index) % 8], kind="delta", weight=1.0 + index)

    again = journaled.recovered()

    assert lasting(again) == lasting(engine)
    workers[1].sequence -= 1
    assert settle(again, workers[1].make(DELTAS[6], kind="delta")).duplicate
    with pytest.raises(PayloadMismatch):
        again.stage(workers[1].make(DELTAS[6]))


def test_the_layout_of_these_tests_has_two_arenas():
    """So that a sign that is lost in one of them is seen."""
    assert list(LAYOUT.sizes) == ["float32", "float64"]
