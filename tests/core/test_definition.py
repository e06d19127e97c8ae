"""What a model is survives JSON, and what it cannot be is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core.consistency import Async, Sync
from stepwell_core.definition import ON_NONFINITE, Definition
from stepwell_core.errors import InvalidArgument, InvalidInput, InvalidName, UnknownTensor
from stepwell_core.layout import Layout, Tensor
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adam, PerPush
from stepwell_core.schedules import CosineDecay

LAYOUT = Layout([Tensor("dense/kernel", (2, 3), "float32"), Tensor("dense/bias", (3,), "float64")])
MINIMAL = {
    "name": "digits",
    "tensors": [{"name": "kernel", "shape": [2], "dtype": "float32"}],
    "optimizer": "SGD",
}


def test_only_name_tensors_and_optimizer_are_needed():
    """Everything else has the default that is safe."""
    definition = Definition.from_json(MINIMAL)

    assert definition == Definition("digits", Layout([Tensor("kernel", (2,), "float32")]), SGD())
    assert definition.consistency == Async()
    assert definition.on_nonfinite == "reject"


@pytest.mark.parametrize("name", ["exclude_from_weight_decay", "consistency", "on_nonfinite"])
def test_null_is_the_same_as_absent(name):
    """Typed languages write every field."""
    assert Definition.from_json({**MINIMAL, name: None}) == Definition.from_json(MINIMAL)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.5, momentum=0.9, nesterov=True),
        Adam(CosineDecay(0.1, 100), amsgrad=True, weight_decay=0.01, use_ema=True),
        Adam(PerPush(), beta_1=PerPush()),
        LossScaleOptimizer(Adam(global_clipnorm=1.0), initial_scale=1024.0),
    ],
)
@pytest.mark.parametrize("consistency", [Async(), Sync(4)])
@pytest.mark.parametrize("on_nonfinite", ON_NONFINITE)
def test_json_round_trip(optimizer, consistency, on_nonfinite):
    """A checkpoint says what the model is."""
    definition = Definition("m-1.x", LAYOUT, optimizer, ("dense/bias",), consistency, on_nonfinite)

    again = Definition.from_json(json.loads(json.dumps(definition.to_json())))

    assert again.to_json() == definition.to_json()
    assert (again.layout, again.excluded) == (LAYOUT, ("dense/bias",))
    assert (again.consistency, again.on_nonfinite) == (consistency, on_nonfinite)
    assert type(again.optimizer) is type(optimizer)


def test_excluded_names_are_held_in_layout_order():
    """The order in which a client lists them makes no other definition."""
    definition = Definition("m", LAYOUT, SGD(), ("dense/bias", "dense/kernel"))

    assert definition.excluded == ("dense/kernel", "dense/bias")


def test_the_rule_is_the_optimizer_inside_a_loss_scale():
    """Other hyperparameters take the place of the inner optimizer's."""
    plain = Definition("m", LAYOUT, SGD(0.5))
    scaled = Definition("m", LAYOUT, LossScaleOptimizer(SGD(0.5), initial_scale=8.0))

    assert plain.rule == scaled.rule == SGD(0.5)
    assert plain.with_rule(SGD(0.25)).optimizer == SGD(0.25)
    assert scaled.with_rule(SGD(0.25)).optimizer == LossScaleOptimizer(SGD(0.25), initial_scale=8.0)


def test_changed_hyperparameters_make_no_other_model():
    """`exist_ok` compares models as they were created."""
    created = Definition("m", LAYOUT, SGD(0.5))
    changed = created.with_rule(SGD(0.25)).with_rule(SGD(0.125))

    assert changed.created_with == SGD(0.5)
    assert changed.differences(created) == []
    assert changed.differences(Definition("m", LAYOUT, SGD(0.125))) == ["optimizer"]
    assert Definition.from_json(changed.to_json()).to_json() == changed.to_json()


@pytest.mark.parametrize(
    "name", ["", "Digits", "../etc", "a/b", "-a", "a" * 65, "ä", 3, None, ["a"]]
)
def test_a_name_that_is_no_identifier_is_refused(name):
    """It becomes the name of a folder."""
    with pytest.raises(InvalidName):
        Definition.from_json({**MINIMAL, "name": name})


@pytest.mark.parametrize("excluded", ["kernel", 3, True, {"kernel": 1}, [3], [["kernel"]], [None]])
def test_excluded_is_a_list_of_names(excluded):
    """A string is not taken for a list of letters, nor a map for its keys."""
    with pytest.raises(InvalidInput, match="list of tensor names"):
        Definition.from_json({**MINIMAL, "exclude_from_weight_decay": excluded})


def test_an_unknown_tensor_cannot_be_excluded():
    """A typing error is not silently without effect."""
    with pytest.raises(UnknownTensor, match="kernle"):
        Definition.from_json({**MINIMAL, "exclude_from_weight_decay": ["kernle"]})


@pytest.mark.parametrize("on_nonfinite", ["", "raise", "REJECT", 0, False, [], ["reject"], {}])
def test_on_nonfinite_is_one_of_three_words(on_nonfinite):
    """What is false in Python is no default."""
    with pytest.raises(InvalidArgument, match="on_nonfinite"):
        Definition.from_json({**MINIMAL, "on_nonfinite": on_nonfinite})


@pytest.mark.parametrize("consistency", ["", 0, False, [], {}, {"mode": "sync"}])
def test_a_consistency_that_is_none_is_refused(consistency):
    """What is false in Python is no default."""
    with pytest.raises(InvalidArgument, match="Received: "):
        Definition.from_json({**MINIMAL, "consistency": consistency})


def test_unknown_fields_are_refused():
    """`optimiser` is not silently ignored."""
    with pytest.raises(InvalidInput, match="optimiser"):
        Definition.from_json({**MINIMAL, "optimiser": "Adam"})


@pytest.mark.parametrize("missing", sorted(MINIMAL))
def test_a_missing_field_is_refused_and_the_error_says_what_came(missing):
    """The caller sees which of the names were understood."""
    value = {name: part for name, part in MINIMAL.items() if name != missing}

    with pytest.raises(InvalidInput, match="Received: ") as error:
        Definition.from_json(value)

    assert all(name in error.value.message for name in value)


@pytest.mark.parametrize(
    "value", [None, 3, [], "digits", {}, {b"name": 1, "name": 2}, {1: 2, "a": 3}]
)
def test_what_is_not_a_map_of_names_is_refused(value):
    """Msgpack may bring keys that cannot be compared with each other."""
    with pytest.raises(InvalidInput):
        Definition.from_json(value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.binary(max_size=6) | st.sampled_from(["SGD", "sync", "async", "kernel", "reject"]),
    lambda children: st.lists(children, max_size=4)
    | st.dictionaries(
        st.sampled_from(["name", "shape", "dtype", "class_name", "config", "mode", "workers"])
        | st.text(max_size=5),
        children,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip


@given(
    value=st.fixed_dictionaries(
        {"name": st.just("m") | anything, "tensors": st.just(MINIMAL["tensors"]) | anything,
         "optimizer": st.just("SGD") | anything},
        optional={
            "exclude_from_weight_decay": anything, "consistency": anything,
            "on_nonfinite": anything, "created_with": anything,
        },
    )
)  # fmt: skip
def test_hostile_json_gives_a_definition_or_a_typed_error(value: dict[str, Any]):
    """No input ends in any other exception."""
    try:
        definition = Definition.from_json(value)
    except InvalidInput as caught:
        error = caught
    else:
        error = None

    if error is not None:
        assert len(error.message) < 2000
    else:
        assert Definition.from_json(definition.to_json()).to_json() == definition.to_json()
