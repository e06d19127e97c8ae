"""Groups of tensors: own rates, own decay, own numbers; and that a journal keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stepwell_core.consistency import Async, Buffered
from stepwell_core.definition import Definition
from stepwell_core.errors import InvalidArgument, InvalidInput, StepwellError
from stepwell_core.groups import MAX_GROUPS, ParameterGroup
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import SGD, Adam, PerPush, TorchSGD
from stepwell_core.schedules import InverseTimeDecay

from tests.core.journaled import Journaled, lasting
from tests.core.models import (
    LAYOUT,
    Worker,
    new_engine,
    parameters_of,
    random_arrays,
    saved,
    through_json,
)

WIDE = Layout([Tensor(name, (3,), "float32") for name in "abcd"])
SCALING = Async(on_stale="scale")
ONES = {name: np.ones(3, np.float32) for name in "abcd"}


def steps_of(optimizer: Any, groups: Any, values: dict[str, float] | None = None) -> dict[str, Any]:
    """Return how far each tensor goes in one step from all ones with a gradient of ones."""
    engine = new_engine(optimizer, layout=WIDE, groups=tuple(groups))
    for array in engine.store.current.values():
        array[...] = 1
    Worker(engine).push(ONES, hyperparameters=values or {})
    return {name: float(1 - array[0]) for name, array in parameters_of(engine).items()}


def test_a_multiplier_is_of_the_learning_rate() -> None:
    """Tensors between those of a group, and behind it, take the optimizer's rate."""
    # Act
    steps = steps_of(SGD(0.5), [ParameterGroup("head", ("a", "c"), 0.25)])

    # Assert
    assert steps == {"a": 0.125, "b": 0.5, "c": 0.125, "d": 0.5}


def test_a_multiplier_is_of_a_schedule_too() -> None:
    """The rate is that of the step, times the group's factor."""
    # Act
    steps = steps_of(SGD(InverseTimeDecay(0.5, 1, 1.0)), [ParameterGroup("head", ("a",), 2)])

    # Assert
    assert (steps["a"], steps["b"]) == (1.0, 0.5)


def test_a_group_has_its_own_numbers() -> None:
    """Rate and decay; of decay also none, where the others have some."""
    # Arrange
    groups = [
        ParameterGroup("free", ("a",), hyperparameters={"weight_decay": None}),
        ParameterGroup("other", ("b",), hyperparameters={"learning_rate": 0.25}),
    ]

    # Act
    steps = steps_of(SGD(0.5, weight_decay=0.5), groups)

    # Assert
    assert steps == {"a": 0.5, "b": 0.25 + 0.125, "c": 0.75, "d": 0.75}


def test_an_excluded_tensor_does_not_decay_in_a_group_that_does() -> None:
    """Exclusion is stronger than a group's own decay."""
    # Arrange
    group = ParameterGroup("all", ("a", "b"), hyperparameters={"weight_decay": 0.5})
    engine = new_engine(SGD(0.5), layout=WIDE, groups=(group,), excluded=("b",))
    for array in engine.store.current.values():
        array[...] = 1

    # Act
    Worker(engine).push(ONES)

    # Assert
    after = parameters_of(engine)
    assert (after["a"][0], after["b"][0], after["c"][0]) == (0.25, 0.5, 0.5)


def test_values_of_a_group_come_with_each_push() -> None:
    """By `group/name`, beside those of the optimizer."""
    # Arrange
    own = {"learning_rate": PerPush(), "weight_decay": PerPush()}
    groups = [ParameterGroup("head", ("a",), hyperparameters=own)]
    values = {"learning_rate": 0.5, "head/learning_rate": 0.25, "head/weight_decay": 2.0}

    # Act
    steps = steps_of(TorchSGD(PerPush()), groups, values)

    # Assert
    assert steps == {"a": 0.75, "b": 0.5, "c": 0.5, "d": 0.5}


@pytest.mark.parametrize(
    "own",
    [{}, {"learning_rate": 0.5}, {"learning_rate": PerPush()}],
    ids=["multiplier", "own rate", "rate of the push"],
)
def test_a_stale_push_takes_less_of_every_learning_rate(own: dict[str, Any]) -> None:
    """`Async(on_stale="scale")` is of the optimizer's, and of a group's own as much."""
    # Arrange
    groups = (ParameterGroup("head", ("a",), 2.0, own),)
    engine = new_engine(SGD(0.5), layout=WIDE, groups=groups, consistency=SCALING)
    worker = Worker(engine)
    said = {"hyperparameters": {"head/learning_rate": 0.5}} if "PerPush" in repr(own) else {}
    for version in range(4):
        worker.push(ONES, version=version, **said)
    before = parameters_of(engine)

    # Act
    worker.push(ONES, version=0, **said)

    # Assert
    after = parameters_of(engine)
    steps = {name: float(before[name][0] - after[name][0]) for name in "ab"}
    assert steps == pytest.approx({"a": 0.25, "b": 0.125})


def test_a_buffer_waits_for_the_last_push_with_the_values_of_groups() -> None:
    """They make the step; so it cannot be made without a push."""
    # Arrange
    groups = (ParameterGroup("head", ("a",), hyperparameters={"learning_rate": PerPush()}),)
    engine = new_engine(SGD(0.5), layout=WIDE, groups=groups, consistency=Buffered(2))
    for array in engine.store.current.values():
        array[...] = 1
    worker = Worker(engine)
    worker.push(ONES, hyperparameters={"head/learning_rate": 0.75})

    # Act / Assert
    with pytest.raises(InvalidInput, match="head/learning_rate"):
        engine.stage_gathered()
    worker.push(ONES, hyperparameters={"head/learning_rate": 0.25})
    after = parameters_of(engine)
    assert (after["a"][0], after["b"][0]) == (0.75, 0.5)


def test_a_gradient_of_all_in_one_group_is_that_of_an_optimizer_with_its_numbers() -> None:
    """Adam, both dtypes, decay and clipping: to the bit."""
    # Arrange
    rng = np.random.default_rng(5)
    gradients = [random_arrays(rng) for _ in range(4)]
    own = {"learning_rate": 0.25, "weight_decay": 0.1, "beta_1": 0.5, "epsilon": 1e-3}
    whole = (ParameterGroup("all", LAYOUT.names, hyperparameters=own),)
    grouped = new_engine(Adam(0.1, global_clipnorm=1.0), groups=whole)
    plain = new_engine(Adam(0.1, global_clipnorm=1.0).with_values(own))

    # Act
    for engine in (grouped, plain):
        worker = Worker(engine)
        for arrays in gradients:
            worker.push(arrays)

    # Assert
    ours, theirs = parameters_of(grouped), parameters_of(plain)
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_a_replayed_journal_gives_the_same_bytes() -> None:
    """Values that came with pushes are in the records, as the numbers that the step took."""
    # Arrange
    rng = np.random.default_rng(6)
    own = {"learning_rate": PerPush(), "beta_2": 0.9}
    groups = (ParameterGroup("head", ("bias",), 0.3, own),)
    engine = new_engine(Adam(0.1, weight_decay=0.01), groups=groups)
    journal, worker = Journaled(engine), Worker(engine)

    # Act
    for step in range(5):
        worker.push(random_arrays(rng), hyperparameters={"head/learning_rate": 0.1 / (1 + step)})
    journal.set(learning_rate=0.05)
    worker.push(random_arrays(rng), hyperparameters={"head/learning_rate": 0.3})

    # Assert
    assert lasting(journal.recovered()) == lasting(engine)


def test_a_checkpoint_keeps_groups() -> None:
    """They are part of the definition, also by way of JSON."""
    # Arrange
    group = ParameterGroup(
        "head", ("bias",), 0.5, {"learning_rate": PerPush(), "weight_decay": None}
    )
    definition = new_engine(Adam(0.1, weight_decay=0.1), groups=(group,)).definition

    # Act
    again = Definition.from_json(through_json(definition.to_json()))

    # Assert
    assert again.groups == (group,)
    assert again.differences(definition) == []
    assert Definition("m", LAYOUT, Adam(0.1, weight_decay=0.1)).differences(again) == ["groups"]


def test_a_model_without_groups_is_described_as_before() -> None:
    """So an older server reads what a newer one wrote."""
    # Act / Assert
    assert "groups" not in saved(new_engine()).definition.to_json()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "head/learning_rate.*Received: none"),
        ({"learning_rate": 0.1}, "Received: learning_rate"),
        ({"head/learning_rate": 0.1, "tail/learning_rate": 0.1}, "tail/learning_rate"),
    ],
)
def test_other_values_than_those_declared_are_refused(
    values: dict[str, float], sentence: str
) -> None:
    """All of them, and no others; nothing changes."""
    # Arrange
    groups = (ParameterGroup("head", ("bias",), hyperparameters={"learning_rate": PerPush()}),)
    engine = new_engine(SGD(0.1), groups=groups)
    worker = Worker(engine)

    # Act / Assert
    with pytest.raises(InvalidInput, match=sentence):
        worker.push(random_arrays(np.random.default_rng(0)), hyperparameters=values)
    assert engine.counters.version == 0


def test_a_value_that_would_change_the_rule_is_refused() -> None:
    """A momentum of 0 has no slot; it cannot come with a push where there is one."""
    # Arrange
    engine = new_engine(TorchSGD(0.1, momentum=PerPush()))
    worker = Worker(engine)

    # Act / Assert
    with pytest.raises(InvalidArgument, match="zero for all or for none"):
        worker.push(random_arrays(np.random.default_rng(0)), hyperparameters={"momentum": 0.0})


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ([("x", ["a"]), ("x", ["b"])], "has its own name"),
        ([("x", ["a"]), ("y", ["a"])], "in no other group. Received: 'a'"),
        ([("x", ["z"])], "Received: 'z'"),
        ([("x", [])], "at least one tensor"),
        ([("x/y", ["a"])], "group name"),
        ([("x", "abc")], "is a list of names"),
        ([("x", ["a"], -1.0)], "finite and >= 0"),
        ([("x", ["a"], float("nan"))], "finite and >= 0"),
        ([("x", ["a"], 1.0, {"clipnorm": 1.0})], "Received: 'clipnorm'"),
        ([("x", ["a"], 1.0, {"momentum": 0.0})], "zero for all or for none"),
        ([("x", ["a"], 1.0, {"learning_rte": 1.0})], "learning_rte"),
        ([(f"g{i}", [f"t{i}"]) for i in range(MAX_GROUPS + 1)], f"at most {MAX_GROUPS}"),
    ],
)
def test_groups_that_do_not_fit_a_model_are_refused(groups: Any, sentence: str) -> None:
    """Each tensor in one group, the same slots for all, options that all share in none."""
    # Act / Assert
    with pytest.raises(StepwellError, match=sentence):
        Definition(
            "m", WIDE, SGD(0.1, momentum=0.9), groups=tuple(ParameterGroup(*g) for g in groups)
        )


@pytest.mark.parametrize(
    "value",
    [
        "head",
        [{"name": "x"}],
        [{"name": "x", "tensors": "a"}],
        [{"name": "x", "tensors": [1]}],
        [{"name": "x", "tensors": ["a"], "lr": 1}],
        [{"name": "x", "tensors": ["a"], "hyperparameters": [1]}],
        [{"name": "x", "tensors": ["a"], "hyperparameters": {"learning_rate": "fast"}}],
        [{"name": "x", "tensors": ["a"], "learning_rate_multiplier": True}],
    ],
    ids=repr,
)
def test_groups_of_a_stranger_are_checked(value: object) -> None:
    """Whatever JSON may hold; no other exception than ours."""
    # Arrange
    description = {**Definition("m", WIDE, SGD(0.1)).to_json(), "groups": value}

    # Act / Assert
    with pytest.raises((InvalidInput, InvalidArgument)):
        Definition.from_json(description)
