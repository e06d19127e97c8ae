"""What a buffered model has gathered: a mean, tensor by tensor, that outlives checkpoint and crash.

Through the engine, since nothing else uses it; `consistency/test_buffered.py` has the decisions.
"""

from __future__ import annotations

import numpy as np
import pytest
from stepwell_core.buffer import BUFFER, Buffer
from stepwell_core.consistency import Async, Buffered
from stepwell_core.engine import Engine
from stepwell_core.errors import CheckpointInvalid, InvalidInput, MixedKinds, UnknownTensor
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, PerPush

from tests.core.journaled import Journaled, lasting
from tests.core.models import (
    SECOND,
    Worker,
    image,
    new_engine,
    parameters_of,
    random_arrays,
    saved,
)

RNG = np.random.default_rng(5)
GRADIENTS = [random_arrays(RNG) for _ in range(4)]
NAN = {"kernel": np.full((3, 4), np.nan, np.float32), "bias": np.ones(4)}


def buffered(size: int = 3, optimizer=None, **definition) -> tuple[Engine, Worker]:
    """Return a model that makes a step of so many pushes, and a worker."""
    optimizer = SGD(1.0) if optimizer is None else optimizer
    engine = new_engine(optimizer, consistency=Buffered(size), **definition)
    return engine, Worker(engine)


def moved(engine: Engine, before, name: str = "bias") -> np.ndarray:
    """Return what was taken from a tensor since `before`."""
    return before[name] - parameters_of(engine)[name]


def test_a_step_takes_the_mean_of_what_was_gathered_by_weight():
    """Nothing moves before."""
    engine, worker = buffered()
    before = parameters_of(engine)
    weights = (1.0, 2.0, 5.0)
    outcomes = []
    for arrays, weight in zip(GRADIENTS, weights, strict=False):
        unmoved = parameters_of(engine)
        outcomes.append(worker.push(arrays, weight=weight).outcome)

    mean = sum(w * g["bias"] for w, g in zip(weights, GRADIENTS, strict=False)) / sum(weights)
    assert outcomes == ["buffered", "buffered", "applied"]
    assert (unmoved["bias"] == before["bias"]).all()
    np.testing.assert_allclose(moved(engine, before), mean, rtol=1e-12)
    assert engine.gathered() == {"count": 0, "kind": "gradient", "weights": {}}


def test_each_tensor_is_the_mean_of_those_who_sent_it():
    """One that nobody sent stays as it is."""
    engine, worker = buffered()
    before = parameters_of(engine)
    worker.push({"bias": GRADIENTS[0]["bias"]}, weight=3.0)
    worker.push({"bias": GRADIENTS[1]["bias"]})
    after_two = engine.gathered()["weights"]
    worker.push({"kernel": GRADIENTS[2]["kernel"]})

    mean = (3 * GRADIENTS[0]["bias"] + GRADIENTS[1]["bias"]) / 4
    assert after_two == {"bias": 4.0}
    np.testing.assert_allclose(moved(engine, before), mean, rtol=1e-12)
    np.testing.assert_allclose(moved(engine, before, "kernel"), GRADIENTS[2]["kernel"], rtol=1e-5)


def test_a_stale_gradient_counts_less_but_is_one_of_k():
    """FedBuff divides by K, not by the sum of the discounts."""
    engine, worker = buffered(size=1)
    worker.push(GRADIENTS[0], version=0)
    before = parameters_of(engine)

    worker.push(GRADIENTS[1], version=0)

    np.testing.assert_allclose(moved(engine, before), GRADIENTS[1]["bias"] / np.sqrt(2), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_gathered_goes_on_after_a_restart_and_after_a_crash(count):
    """To the bit: from the checkpoint alone, and from an older one and the journal."""
    engine, worker = buffered()
    journal = Journaled(engine)
    for arrays in GRADIENTS[:count]:
        worker.push(arrays)
    restarted, crashed = Engine(saved(engine), engine.incarnation), journal.recovered()
    assert lasting(restarted) == lasting(crashed) == lasting(engine)

    rest = [worker.make(arrays) for arrays in GRADIENTS[count:3]]
    for number, push in enumerate(rest):
        for one in (engine, restarted, crashed):
            due = count + number
            made = type(push)(*push.key[:2], due, push.incarnation, push.gradient)
            one.commit(one.stage(made))

    assert engine.counters.version == 1
    assert image(restarted) == image(crashed) == image(engine)


def test_a_restore_brings_back_what_was_gathered_then():
    """The buffer belongs to the cut."""
    engine, worker = buffered()
    worker.push(GRADIENTS[0])
    state, gathered = saved(engine), engine.gathered()
    slot = engine.slot(BUFFER)["float64"].copy()
    worker.push(GRADIENTS[1])
    worker.push(GRADIENTS[2])

    engine.restore(state, SECOND)

    assert engine.gathered() == gathered
    assert (engine.slot(BUFFER)["float64"] == slot).all()


def test_a_change_that_is_withdrawn_was_not_gathered():
    """The disk was full: the same push comes again and counts once."""
    engine, worker = buffered(size=2)
    before = image(engine)
    staged = engine.stage(worker.make(GRADIENTS[0]))

    engine.withdraw(staged)

    assert image(engine) == before
    assert worker.push(GRADIENTS[0]).outcome == "buffered"
    assert engine.gathered()["count"] == 1


def test_what_was_gathered_makes_a_step_when_it_is_asked_for():
    """Its mean over how many there are; nothing is left, and nothing makes no step."""
    engine, worker = buffered(size=9)
    before = parameters_of(engine)
    worker.push(GRADIENTS[0])
    worker.push(GRADIENTS[1])

    results = engine.commit(engine.stage_gathered())

    mean = (GRADIENTS[0]["bias"] + GRADIENTS[1]["bias"]) / 2
    assert (results, engine.counters.version) == ((), 1)
    np.testing.assert_allclose(moved(engine, before), mean, rtol=1e-12)
    assert engine.stage_gathered() is None
    engine.adopt_consistency(Async())
    assert BUFFER not in engine.store.slots


def test_a_step_that_takes_values_of_a_push_is_not_made_without_one():
    """Refused with what to do, and all of it stays."""
    engine, worker = buffered(optimizer=SGD(PerPush()))
    worker.push(GRADIENTS[0], hyperparameters={"learning_rate": 0.5})
    before = image(engine)

    with pytest.raises(InvalidInput, match="right after a step"):
        engine.stage_gathered()

    assert image(engine) == before


def test_a_gradient_does_not_join_deltas():
    """Their mean is neither; the deltas move the parameters by themselves."""
    engine, worker = buffered(size=2)
    before = parameters_of(engine)
    worker.push(GRADIENTS[0], kind="delta")
    with pytest.raises(MixedKinds):
        engine.stage(worker.make(GRADIENTS[1]))

    worker.push(GRADIENTS[1], kind="delta")

    mean = (GRADIENTS[0]["bias"] + GRADIENTS[1]["bias"]) / 2
    np.testing.assert_allclose(-moved(engine, before), mean, rtol=1e-12)


def test_with_a_dynamic_loss_scale_what_is_not_finite_is_not_gathered():
    """The scale is halved, and those before are still there."""
    engine, worker = buffered(optimizer=LossScaleOptimizer(SGD(1.0), initial_scale=8.0))
    worker.push(GRADIENTS[0])

    result = worker.push(NAN)

    assert (result.outcome, result.loss_scale) == ("skipped_nonfinite", 4.0)
    assert engine.gathered()["count"] == 1
    assert np.isfinite(engine.slot(BUFFER)["float32"]).all()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"count": 1, "weights": {"nobody": 1.0}}, UnknownTensor),
        ({"count": -1, "weights": {"bias": 1.0}}, CheckpointInvalid),
        ({"count": 1, "weights": {}}, CheckpointInvalid),
        ({"count": 0, "weights": {"bias": 1.0}}, CheckpointInvalid),
        ({"count": 1, "weights": {"bias": 0.0}}, CheckpointInvalid),
        ({"count": 1, "weights": {"bias": float("nan")}}, CheckpointInvalid),
        ({"count": "1", "weights": {"bias": 1.0}}, CheckpointInvalid),
        ({"count": 1, "weights": ["bias"]}, CheckpointInvalid),
        ({"count": 1}, CheckpointInvalid),
        ({"count": 1, "weights": {"bias": 1.0}, "values": ["bias"]}, CheckpointInvalid),
    ],
)
def test_bookkeeping_that_cannot_be_is_refused(said, error):
    """A checkpoint may come from a stranger."""
    engine, _ = buffered()

    with pytest.raises(error):
        Buffer(engine.pipeline, engine.layout.new_arenas(), said)
