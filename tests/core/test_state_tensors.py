"""Tensors that are not optimized: set by pushes, kept, averaged as themselves, and journaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stepwell_core.consistency import Async, Bounded, Buffered, Quorum, Sync
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import CheckpointInvalid, InvalidInput, StepwellError
from stepwell_core.groups import ParameterGroup
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import SGD, Adam
from stepwell_core.pipeline import Gradient

from tests.core.journaled import Journaled, lasting
from tests.core.models import Worker, new_engine, parameters_of, saved, through_json

LAYOUT = Layout(
    [
        Tensor("w", (3,), "float32"),
        Tensor("mean", (2,), "float32"),
        Tensor("b", (2,), "float32"),
        Tensor("count", (), "float64"),
    ]
)
STATE = ("mean", "count")
ONES = {"w": np.ones(3, np.float32), "b": np.ones(2, np.float32)}


def engine_of(optimizer: Any = None, **definition: Any) -> Any:
    """Return a model of zeros."""
    engine = new_engine(optimizer or SGD(0.5), layout=LAYOUT, state=STATE, **definition)
    for array in engine.store.current.values():
        array[...] = 0
    return engine


def values(mean: float, count: float | None = None) -> dict[str, np.ndarray]:
    """Return gradients of ones with values of the state."""
    state = {} if count is None else {"count": np.array(count, np.float64)}
    return {**ONES, "mean": np.full(2, mean, np.float32), **state}


def test_a_value_comes_with_a_push_and_replaces_the_old() -> None:
    """Beside a step of what is optimized; nothing divides, clips or decays it."""
    # Arrange
    engine = engine_of(SGD(0.5, weight_decay=0.1, global_clipnorm=1e9, loss_scale_factor=2.0))

    # Act
    Worker(engine).push(values(7.0, 2.0**40 + 1), state=STATE)

    # Assert
    after = parameters_of(engine)
    assert after["mean"].tolist() == [7.0, 7.0]
    assert after["count"] == 2.0**40 + 1
    assert after["w"].tolist() == [-0.25] * 3


def test_without_a_value_it_stays() -> None:
    """Also while somebody reads, so that the step goes to another buffer."""
    # Arrange
    engine = engine_of()
    worker = Worker(engine)
    worker.push(values(7.0), state=["mean"])
    held = engine.store.hold()

    # Act
    worker.push(ONES)

    # Assert
    assert parameters_of(engine)["mean"].tolist() == [7.0, 7.0]
    engine.store.release(held)


def test_a_large_value_has_no_part_in_a_norm() -> None:
    """The gradient is clipped by its own norm."""
    # Arrange
    plain, other = (
        engine_of(SGD(0.5, global_clipnorm=1.0)),
        engine_of(SGD(0.5, global_clipnorm=1.0)),
    )

    # Act
    Worker(plain).push(ONES)
    Worker(other).push(values(1e9), state=["mean"])

    # Assert
    assert parameters_of(plain)["w"].tolist() == parameters_of(other)["w"].tolist()


@pytest.mark.parametrize("is_held", [False, True])
def test_its_average_is_the_value_itself(is_held: bool) -> None:
    """So neither `finalize` nor overwriting brings old statistics back."""
    # Arrange
    engine = engine_of(SGD(0.5, use_ema=True, ema_momentum=0.9))
    worker = Worker(engine)
    worker.push(values(1.0, 1.0), state=STATE)
    held = engine.store.hold() if is_held else None

    # Act
    worker.push(values(5.0), state=["mean"])
    engine.finalize()

    # Assert
    after = parameters_of(engine)
    assert (after["mean"][0], float(after["count"])) == (5.0, 1.0)
    if held is not None:
        engine.store.release(held)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_push_that_is_accumulated_sets_it_at_once(is_held: bool) -> None:
    """The parameters' version counts it, so that everyone pulls it; the others stay as they are."""
    # Arrange
    engine = engine_of(SGD(0.5, gradient_accumulation_steps=2, use_ema=True))
    worker = Worker(engine)
    worker.push(ONES)
    worker.push(ONES)
    before = parameters_of(engine)
    held = engine.store.hold() if is_held else None

    # Act
    result = worker.push(values(3.0), state=["mean"])

    # Assert
    after = parameters_of(engine)
    assert (result.outcome, result.parameters_version) == ("accumulated", 3)
    assert after["mean"].tolist() == [3.0, 3.0]
    assert after["w"].tolist() == before["w"].tolist()
    if held is not None:
        engine.store.release(held)


@pytest.mark.parametrize("reduction", ["order", "arrival"])
def test_of_several_workers_the_last_counts(reduction: str) -> None:
    """Of their names, or of those who came; the gradients' mean is that of gradients alone."""
    # Arrange
    consistency = Sync(2, reduction=reduction)  # type: ignore[arg-type]
    engine = engine_of(consistency=consistency)
    workers = [Worker(engine, name) for name in ("a", "b")]
    order = workers if reduction == "arrival" else workers[::-1]

    # Act
    for worker in order:
        worker.push(values({"a": 1.0, "b": 2.0}[worker.name]), state=["mean"], weight=3.0)

    # Assert
    after = parameters_of(engine)
    assert after["mean"].tolist() == [2.0, 2.0]
    assert after["w"].tolist() == [-0.5] * 3


@pytest.mark.parametrize("mode", [Async(), Bounded(1), Quorum(2, 1), Buffered(1), Sync(1)])
def test_a_delta_sets_it_as_a_gradient_does(mode: Any) -> None:
    """The delta is negated, and the value is not, whatever makes the step."""
    # Arrange
    engine = engine_of(SGD(1.0), consistency=mode)
    worker = Worker(engine)

    # Act
    worker.push(values(3.0, -2.0), state=STATE, kind="delta", version=0)

    # Assert
    after = parameters_of(engine)
    assert (after["mean"].tolist(), float(after["count"])) == ([3.0, 3.0], -2.0)
    assert after["w"].tolist() == [1.0] * 3


@pytest.mark.parametrize("reduction", ["order", "arrival"])
def test_of_several_deltas_the_last_value_counts(reduction: str) -> None:
    """As of gradients; their mean is of different weights, the value of none."""
    # Arrange
    consistency = Sync(2, reduction=reduction)  # type: ignore[arg-type]
    engine = engine_of(SGD(1.0), consistency=consistency)
    workers = [Worker(engine, name) for name in ("a", "b")]

    # Act
    for number, worker in enumerate(workers, 1):
        worker.push(values(float(number)), state=["mean"], kind="delta", weight=float(number))

    # Assert
    after = parameters_of(engine)
    assert after["mean"].tolist() == [2.0, 2.0]
    assert after["w"].tolist() == [1.0] * 3


# A buffer, where a push is answered before its step is made


def test_a_gathered_value_comes_with_the_step_of_its_gradient() -> None:
    """The last that came, undiscounted; until then everyone pulls the old one."""
    # Arrange
    engine = engine_of(consistency=Buffered(3))
    worker = Worker(engine)
    worker.push(values(1.0), state=["mean"], version=0)
    worker.push(values(2.0, 9.0), state=STATE, version=0, weight=5.0)
    waiting = parameters_of(engine)

    # Act
    result = worker.push(ONES, version=0)

    # Assert
    after = parameters_of(engine)
    assert waiting["mean"].tolist() == [0.0, 0.0]
    assert result.outcome == "applied"
    assert (after["mean"].tolist(), float(after["count"])) == ([2.0, 2.0], 9.0)
    assert after["w"].tolist() == [-0.5] * 3


def test_a_stale_push_has_its_gradient_discounted_and_not_its_value() -> None:
    """Three versions behind a gradient counts half."""
    # Arrange
    engine = engine_of(consistency=Buffered(1))
    worker = Worker(engine)
    for version in range(3):
        worker.push(ONES, version=version)
    before = parameters_of(engine)["w"]

    # Act
    worker.push(values(8.0), state=["mean"], version=0)

    # Assert
    after = parameters_of(engine)
    assert after["mean"].tolist() == [8.0, 8.0]
    assert (after["w"] - before).tolist() == [-0.25] * 3


def test_a_value_of_an_earlier_step_is_not_set_again() -> None:
    """The buffer begins anew, though its memory is the same."""
    # Arrange
    engine = engine_of(consistency=Buffered(2))
    worker = Worker(engine)
    worker.push(values(1.0), state=["mean"])
    worker.push(ONES)
    later = values(4.0)
    worker.push(later, state=["mean"])
    worker.push(ONES)

    # Act
    engine.store.current["float32"][engine.layout.segments["mean"].start] = -1
    worker.push(ONES)
    worker.push(ONES)

    # Assert
    assert parameters_of(engine)["mean"].tolist() == [-1.0, 4.0]
    assert "values" not in engine.gathered()


@pytest.mark.parametrize("accumulates", [None, 2])
def test_a_buffer_in_a_checkpoint_knows_which_values_came(accumulates: int | None) -> None:
    """A model that goes on from it ends with the bytes of one that never stopped."""
    # Arrange
    rule = Adam(0.1, use_ema=True, gradient_accumulation_steps=accumulates)
    engine = engine_of(rule, consistency=Buffered(3))
    worker = Worker(engine)
    worker.push(values(1.0, 4.0), state=STATE)
    worker.push(values(2.0), state=["mean"])

    # Act
    again = Engine(saved(engine), engine.incarnation)
    for model in (engine, again):
        worker.engine, worker.sequence = model, 2
        worker.push(ONES)

    # Assert
    assert lasting(again) == lasting(engine)
    after = parameters_of(again)
    assert (after["mean"].tolist(), float(after["count"])) == ([2.0, 2.0], 4.0)


def test_a_journal_of_gathered_values_gives_the_same_bytes() -> None:
    """Behind a checkpoint with some in its buffer; of deltas as of gradients."""
    # Arrange
    engine = engine_of(SGD(0.5, momentum=0.9), consistency=Buffered(3))
    worker = Worker(engine)
    worker.push(values(1.0), state=["mean"], kind="delta", weight=2.0)
    journal = Journaled(engine)

    # Act
    for step in range(6):
        state = STATE if step % 2 else ["mean"]
        count = float(step) if step % 2 else None
        worker.push(values(float(step), count), state=state, kind="delta", version=0)

    # Assert
    assert engine.counters.version == 2
    assert lasting(journal.recovered()) == lasting(engine)


def test_leaving_a_buffer_sets_the_values_in_it() -> None:
    """The step of what was gathered, without another push, has them too."""
    # Arrange
    engine = engine_of(consistency=Buffered(3))
    journal = Journaled(engine)
    Worker(engine).push(values(6.0), state=["mean"])

    # Act
    staged = engine.stage_gathered()
    assert staged is not None
    engine.commit(staged)

    # Assert
    assert parameters_of(engine)["mean"].tolist() == [6.0, 6.0]
    assert lasting(journal.recovered()) == lasting(engine)


@pytest.mark.parametrize(
    "said",
    [
        {"count": 1, "weights": {"w": 1.0}, "values": ["b"]},
        {"count": 1, "weights": {"mean": 1.0}},
        {"count": 1, "weights": {"w": 1.0}, "values": ["x"]},
    ],
)
def test_a_checkpoint_whose_buffer_takes_one_for_the_other_is_refused(said: Any) -> None:
    """No parameter becomes what is left in memory of a sum."""
    # Arrange
    state = saved(engine_of(consistency=Buffered(3)))

    # Act / Assert
    with pytest.raises((CheckpointInvalid, InvalidInput)):
        Engine(replace(state, gathered=said), "1" * 32)


def test_a_half_width_push_has_rounded_values() -> None:
    """The payload has one dtype; the value is decoded and nothing else."""
    # Arrange
    engine = engine_of()
    selection = LAYOUT.select(["w", "mean", "b"])
    bits = np.full(7, 0x3F80, np.uint16)  # ones in bfloat16
    gradient = Gradient(selection, {"float32": bits}, "bfloat16")
    worker = Worker(engine)

    # Act
    worker.push(ONES, gradient=gradient, state=["mean"])

    # Assert
    assert parameters_of(engine)["mean"].tolist() == [1.0, 1.0]


def test_a_replayed_journal_gives_the_same_bytes() -> None:
    """Values are in the records, of whole steps and of those that accumulate."""
    # Arrange
    engine = engine_of(Adam(0.1, use_ema=True, gradient_accumulation_steps=2))
    journal, worker = Journaled(engine), Worker(engine)

    # Act
    for step in range(5):
        worker.push(values(float(step), 2.0 * step), state=STATE)
    worker.push(ONES)

    # Assert
    assert lasting(journal.recovered()) == lasting(engine)


def test_it_is_set_once_however_often_the_push_is_repeated() -> None:
    """A repetition after another worker's push does not bring the old value back."""
    # Arrange
    engine = engine_of()
    first, second = Worker(engine, "a"), Worker(engine, "b")
    push = first.make(values(1.0), state=["mean"])
    engine.commit(engine.stage(push))
    second.push(values(2.0), state=["mean"])

    # Act
    engine.stage(first.make(values(1.0), state=["mean"]))

    # Assert
    assert parameters_of(engine)["mean"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("arrays", "state", "sentence"),
    [
        (values(1.0), [], "'mean' is state: it takes a value.*Received: a gradient"),
        (ONES, ["w"], "'w' is optimized: it takes a gradient.*Received: a value"),
        ({"mean": np.ones(2, np.float32)}, ["mean"], "state alone"),
    ],
)
def test_a_gradient_is_not_taken_for_a_value(
    arrays: dict[str, np.ndarray], state: list[str], sentence: str
) -> None:
    """Who pushes says which tensors have values, so neither is taken for the other."""
    # Arrange
    engine = engine_of()
    worker = Worker(engine)

    # Act / Assert
    with pytest.raises(InvalidInput, match=sentence):
        worker.push(arrays, state=state)
    assert engine.counters.version == 0


def test_a_push_without_a_version_is_refused_where_one_is_needed() -> None:
    """State makes no exception: how old a gradient is decides what becomes of it."""
    # Arrange
    worker = Worker(engine_of(consistency=Async(max_staleness=1)))

    # Act / Assert
    with pytest.raises(InvalidInput, match="version=None"):
        worker.push(values(1.0), state=["mean"])


@pytest.mark.parametrize("state", [LAYOUT.names, ("x",), ("mean", "mean")])
def test_a_state_that_cannot_be_is_refused(state: tuple[str, ...]) -> None:
    """Something is optimized, and each name is a tensor's."""
    # Act / Assert
    with pytest.raises(StepwellError):
        Definition("m", LAYOUT, SGD(0.1), state=state)


def test_state_is_in_no_group() -> None:
    """Nothing of an optimizer is for it."""
    # Act / Assert
    with pytest.raises(StepwellError, match="Received: 'mean'"):
        Definition("m", LAYOUT, SGD(0.1), state=STATE, groups=(ParameterGroup("g", ("mean",)),))


def test_a_checkpoint_keeps_what_is_state() -> None:
    """By name, in layout order; a model without any is described as before."""
    # Arrange
    definition = Definition("m", LAYOUT, SGD(0.1), state=("count", "mean"))

    # Act
    again = Definition.from_json(through_json(definition.to_json()))

    # Assert
    assert again.state == ("mean", "count")
    assert "state" not in Definition("m", LAYOUT, SGD(0.1)).to_json()
