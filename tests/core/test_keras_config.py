"""Configurations: Keras's JSON in, Keras's JSON out, and Keras's own refusals."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
from stepwell_core import keras_config, schedules
from stepwell_core.errors import InvalidArgument
from stepwell_core.keras_config import deserialize, hyperparameters, serialize
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adagrad, Adam, Optimizer, PerPush

# Keras 3.15 makes arrays of its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RULES: dict[str, list[dict[str, Any]]] = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 1.0, "nesterov": True}],
    "Adagrad": [{}, {"initial_accumulator_value": 0.0, "epsilon": 1e-3}],
    "Adam": [{}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3, "amsgrad": True}],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"learning_rate": 0.3, "name": "mine"},
    {"weight_decay": 0.004},
    {"weight_decay": 0.0, "clipnorm": 0.0},
    {"clipnorm": 1.0},
    {"clipvalue": 0.5},
    {"global_clipnorm": 5.0},
    {"use_ema": True},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
    {"ema_momentum": 7.0, "ema_overwrite_frequency": -1},
    {"loss_scale_factor": 128.0},
    {"gradient_accumulation_steps": 4},
    {"gradient_accumulation_steps": 0},
]
SCHEDULES: list[tuple[str, dict[str, Any]]] = [
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.9}),
    ("PiecewiseConstantDecay", {"boundaries": [2, 5], "values": [0.1, 0.05, 0.01]}),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "cycle": True}),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 7, "decay_rate": 0.9}),
    ("CosineDecay", {"initial_learning_rate": 0.0, "decay_steps": 7, "warmup_target": 0.1}),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 7}),
]
EVERYTHING = [
    (name, {**rule, **options})
    for name, rules in RULES.items()
    for rule, options in itertools.product(rules, OPTIONS)
]


@pytest.fixture(scope="module")
def keras() -> Any:
    """Give Keras, the oracle."""
    return pytest.importorskip("keras")


def same_text(ours: Any, theirs: Any) -> bool:
    """Return whether two configurations are the same JSON, keys in the same order."""
    return json.dumps(ours) == json.dumps(theirs)


# The round trip through Keras


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "arguments"), EVERYTHING, ids=str)
def test_a_config_from_keras_comes_back_as_it_was(
    keras: Any, name: str, arguments: dict[str, Any]
) -> None:
    """`serialize(deserialize(c))` is `c` for every optimizer and option of Keras."""
    # Arrange
    theirs = keras.optimizers.serialize(getattr(keras.optimizers, name)(**arguments))

    # Act
    ours = serialize(deserialize(json.loads(json.dumps(theirs))))

    # Assert
    assert same_text(ours, theirs)


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "arguments"), EVERYTHING, ids=str)
def test_our_config_is_what_keras_gives(keras: Any, name: str, arguments: dict[str, Any]) -> None:
    """The same constructor call gives the same JSON here and there, and Keras reads ours."""
    # Arrange
    cls = {"SGD": SGD, "Adagrad": Adagrad, "Adam": Adam}[name]
    arguments = {"name": name.lower(), **arguments}

    # Act
    ours = serialize(cls(**arguments))
    theirs = keras.optimizers.serialize(getattr(keras.optimizers, name)(**arguments))
    again = keras.optimizers.serialize(keras.optimizers.deserialize(copy.deepcopy(ours)))

    # Assert
    assert same_text(ours, theirs)
    assert same_text(again, theirs)


@pytest.mark.oracle
@pytest.mark.parametrize(("schedule", "arguments"), SCHEDULES, ids=[s for s, _ in SCHEDULES])
def test_schedules_come_back_as_they_were(
    keras: Any, schedule: str, arguments: dict[str, Any]
) -> None:
    """A schedule inside an optimizer keeps its own full form."""
    # Arrange
    rate = getattr(keras.optimizers.schedules, schedule)(**arguments)
    theirs = keras.optimizers.serialize(keras.optimizers.Adam(rate))

    # Act
    optimizer = deserialize(json.loads(json.dumps(theirs)))

    # Assert
    assert isinstance(optimizer, Adam)
    assert isinstance(optimizer.learning_rate, getattr(schedules, schedule))
    assert same_text(serialize(optimizer), theirs)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "arguments",
    [{}, {"initial_scale": 1024.0, "dynamic_growth_steps": 5, "name": "scaled"}],
    ids=str,
)
def test_a_loss_scale_optimizer_comes_back_as_it_was(keras: Any, arguments: dict[str, Any]) -> None:
    """The inner optimizer travels whole, and its own loss scale is off on both sides."""
    # Arrange
    inner = keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0, loss_scale_factor=8.0)
    theirs = keras.optimizers.serialize(keras.optimizers.LossScaleOptimizer(inner, **arguments))

    # Act
    optimizer = deserialize(json.loads(json.dumps(theirs)))
    again = keras.optimizers.deserialize(json.loads(json.dumps(serialize(optimizer))))

    # Assert
    assert same_text(serialize(optimizer), theirs)
    assert same_text(keras.optimizers.serialize(again), theirs)


def test_a_learning_rate_is_written_as_float32() -> None:
    """Keras holds it in a float32 variable, so 0.001 comes out with more digits."""
    # Act
    config = serialize(Adam())["config"]

    # Assert
    assert config["learning_rate"] == 0.0010000000474974513


# Other forms


@pytest.mark.parametrize("class_name", ["Adam", "adam", "ADAM", "aDaM"])
def test_class_names_are_compared_without_case(class_name: str) -> None:
    """As `keras.optimizers.get` does."""
    # Act
    optimizer = deserialize({"class_name": class_name, "config": {"learning_rate": 0.5}})

    # Assert
    assert optimizer == Adam(0.5)


@pytest.mark.parametrize(
    "config",
    ["Adam", "adam", {"class_name": "Adam"}, {"class_name": "Adam", "config": None},
     {"class_name": "Adam", "config": {}}],
    ids=str,
)  # fmt: skip
def test_what_is_left_out_has_its_default(config: Any) -> None:
    """A name alone is an optimizer with Keras's defaults."""
    # Act
    optimizer = deserialize(config)

    # Assert
    assert optimizer == Adam()


def test_the_short_form_nests() -> None:
    """Short inside short: a loss scale around an optimizer with a schedule."""
    # Arrange
    schedule = {
        "class_name": "exponentialdecay",
        "config": {"initial_learning_rate": 1, "decay_steps": 10, "decay_rate": 0.5},
    }
    sgd = {"class_name": "sgd", "config": {"learning_rate": schedule}}

    # Act
    optimizer = deserialize(
        {"class_name": "lossscaleoptimizer", "config": {"inner_optimizer": sgd}}
    )

    # Assert
    assert optimizer == LossScaleOptimizer(SGD(schedules.ExponentialDecay(1, 10, 0.5)))


def test_integers_are_taken_for_floats() -> None:
    """R and JavaScript write 1 for 1.0; what Keras counts in integers stays one."""
    # Arrange
    config = {
        "learning_rate": 1,
        "momentum": 0,
        "clipnorm": 1,
        "ema_momentum": 0,
        "use_ema": True,
        "ema_overwrite_frequency": 3,
    }

    # Act
    optimizer = deserialize({"class_name": "SGD", "config": config})

    # Assert
    assert isinstance(optimizer, SGD)
    values = {name: getattr(optimizer, name) for name in config}
    assert values == config
    assert [type(value) for value in values.values()] == [float, float, float, float, bool, int]


def test_a_value_of_each_push_is_per_push() -> None:
    """`PerPush` goes both ways, for the hyperparameters that may be callables."""
    # Arrange
    config = {
        "class_name": "Adam",
        "config": {"learning_rate": {"class_name": "PerPush"}, "beta_1": {"class_name": "PerPush"}},
    }

    # Act
    optimizer = deserialize(config)

    # Assert
    assert optimizer == Adam(learning_rate=PerPush(), beta_1=PerPush())
    assert serialize(optimizer)["config"]["beta_1"] == {"class_name": "PerPush"}
    assert deserialize(serialize(optimizer)) == Adam(PerPush(), PerPush(), name="adam")


def test_a_callable_has_no_json_form() -> None:
    """A function stays in the worker; the error says what to send."""
    # Act / Assert
    with pytest.raises(InvalidArgument, match="send PerPush"):
        serialize(SGD(learning_rate=lambda: 0.1))


def test_live_hyperparameters_have_the_same_json_form() -> None:
    """What a change of hyperparameters sends is read as in a configuration."""
    # Arrange
    schedule = schedules.ExponentialDecay(0.1, 10, 0.5)

    # Act
    values = hyperparameters(Adam, {"learning_rate": schedule.serialize(), "epsilon": 1})

    # Assert
    assert values == {"learning_rate": schedule, "epsilon": 1.0}
    with pytest.raises(InvalidArgument, match="has no argument 'epsilom'"):
        hyperparameters(Adam, {"epsilom": 1})


# Refusals

REFUSED_BY_KERAS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": -0.1}),
    ("SGD", {"momentum": 1.1}),
    ("SGD", {"momentum": "0.9"}),
    *itertools.product(
        RULES,
        [
            {"learning_rate": "0.1"},
            {"learning_rate": None},
            {"learning_rate": [0.1]},
            {"gradient_accumulation_steps": 1},
            {"gradient_accumulation_steps": -3},
            {"gradient_accumulation_steps": True},
            {"use_ema": True, "ema_momentum": 1.1},
            {"use_ema": True, "ema_momentum": -0.1},
            {"use_ema": True, "ema_overwrite_frequency": -1},
            {"use_ema": True, "ema_overwrite_frequency": 2.5},
            {"clipnorm": 1.0, "clipvalue": 1.0},
            {"clipnorm": 1.0, "global_clipnorm": 1.0},
            {"clipvalue": 1.0, "global_clipnorm": 0.0},
            {"clipnorm": 1.0, "clipvalue": 1.0, "global_clipnorm": 1.0},
            {"name": "a/b"},
            {"name": 7},
            {"learning_rte": 0.1},
            {"lr": 0.1},
            {"slots": 1},
        ],
    ),
]


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "arguments"), REFUSED_BY_KERAS, ids=str)
def test_what_keras_refuses_is_refused(keras: Any, name: str, arguments: dict[str, Any]) -> None:
    """Each of Keras's own conditions is an error here, with what was received."""
    # Arrange
    config = {"class_name": name, "config": arguments}

    # Act
    with pytest.raises((ValueError, TypeError)):
        getattr(keras.optimizers, name)(**arguments)
    with pytest.raises(InvalidArgument) as refusal:
        deserialize(config)

    # Assert
    assert any(argument in refusal.value.message for argument in arguments)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.1},
        {"weight_decay": 0.1},
        {"clipnorm": 1.0},
        {"clipvalue": 1.0},
        {"global_clipnorm": 1.0},
        {"use_ema": True},
        {"ema_momentum": 0.9},
        {"ema_overwrite_frequency": 3},
        {"loss_scale_factor": 2.0},
        {"gradient_accumulation_steps": 2},
        {"dynamic": False},
        {"momentum": 0.9},
    ],
    ids=str,
)
def test_options_belong_to_the_inner_optimizer(keras: Any, arguments: dict[str, Any]) -> None:
    """Keras refuses them on a `LossScaleOptimizer`, and so do we."""
    # Act
    with pytest.raises(ValueError, match="LossScaleOptimizer"):
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), **arguments)
    with pytest.raises(InvalidArgument) as refusal:
        deserialize(
            {"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": "SGD", **arguments}}
        )

    # Assert
    assert next(iter(arguments)) in refusal.value.message


def test_defaults_that_keras_once_wrote_are_taken() -> None:
    """Old configurations of a `LossScaleOptimizer` carry the base options with their defaults."""
    # Arrange
    old = {"inner_optimizer": "SGD", **keras_config._BASE_OPTIONS}

    # Act
    optimizer = deserialize({"class_name": "LossScaleOptimizer", "config": old})

    # Assert
    assert optimizer == LossScaleOptimizer(SGD())


NEST: Any = {"class_name": "Adam"}
for _ in range(20_000):
    NEST = {"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": NEST}}
SCHEDULE = schedules.ExponentialDecay(0.1, 10, 0.5).serialize()

HOSTILE: dict[str, Any] = {
    "nothing": None,
    "a_number": 3,
    "a_list": ["Adam"],
    "an_empty_map": {},
    "no_class": {"config": {}},
    "a_class_of_another_type": {"class_name": ["Adam"], "config": {}},
    "an_unknown_class": {"class_name": "AdamW", "config": {}},
    "a_long_class": {"class_name": "A" * 10**6, "config": {}},
    "a_private_class": {"class_name": "__import__", "config": {}},
    "the_base_class": {"class_name": "Optimizer", "config": {"learning_rate": 0.1}},
    "a_list_of_arguments": {"class_name": "Adam", "config": [0.1]},
    "an_empty_list_of_arguments": {"class_name": "Adam", "config": []},
    "a_number_as_argument": {"class_name": "Adam", "config": {3: 4}},
    "a_private_argument": {"class_name": "Adam", "config": {"per_push_names": ["name"]}},
    "a_text_as_rate": {"class_name": "Adam", "config": {"learning_rate": "x" * 10**6}},
    "truth_as_rate": {"class_name": "Adam", "config": {"learning_rate": True}},
    "infinity": {"class_name": "Adam", "config": {"epsilon": float("inf")}},
    "not_a_number": {"class_name": "Adam", "config": {"learning_rate": float("nan")}},
    "a_large_integer": {"class_name": "Adam", "config": {"clipnorm": 10**400}},
    "a_large_integer_as_rate": {"class_name": "Adam", "config": {"learning_rate": -(10**400)}},
    "a_large_count": {"class_name": "Adam", "config": {"gradient_accumulation_steps": 10**400}},
    "a_number_as_flag": {"class_name": "Adam", "config": {"amsgrad": 1}},
    "a_flag_as_number": {"class_name": "Adam", "config": {"weight_decay": True}},
    "a_long_name": {"class_name": "Adam", "config": {"name": "x" * 10**6}},
    "a_list_as_epsilon": {"class_name": "Adam", "config": {"epsilon": [1e-7] * 10**6}},
    "a_schedule_as_beta": {"class_name": "Adam", "config": {"beta_1": SCHEDULE}},
    "a_schedule_as_epsilon": {"class_name": "Adam", "config": {"epsilon": SCHEDULE}},
    "a_push_as_epsilon": {"class_name": "Adam", "config": {"epsilon": {"class_name": "PerPush"}}},
    "a_push_as_name": {"class_name": "Adam", "config": {"name": {"class_name": "PerPush"}}},
    "a_lambda": {
        "class_name": "Adam",
        "config": {"learning_rate": {"class_name": "__lambda__", "config": {"value": "4wEA"}}},
    },
    "an_unknown_schedule": {
        "class_name": "Adam",
        "config": {"learning_rate": {"class_name": "Warmup"}},
    },
    "no_inner_optimizer": {"class_name": "LossScaleOptimizer", "config": {}},
    "nothing_as_inner_optimizer": {
        "class_name": "LossScaleOptimizer",
        "config": {"inner_optimizer": None},
    },
    "a_deep_nest": NEST,
    "a_scale_of_zero": {
        "class_name": "LossScaleOptimizer",
        "config": {"inner_optimizer": "Adam", "initial_scale": 0},
    },
}


@pytest.mark.parametrize("config", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_config_is_a_typed_error(config: Any) -> None:
    """Whatever a stranger sends is an optimizer or a short `InvalidArgument`."""
    # Act
    with pytest.raises(InvalidArgument) as refusal:
        deserialize(config)

    # Assert
    assert len(refusal.value.message) < 500


def test_an_empty_name_is_kept() -> None:
    """Only a name that is not given is made up."""
    # Act
    names = [serialize(optimizer)["config"]["name"] for optimizer in (Adam(name=""), Adam())]

    # Assert
    assert names == ["", "adam"]


def test_what_is_read_is_never_changed() -> None:
    """Reading a configuration leaves the caller's map as it was."""
    # Arrange
    config = serialize(LossScaleOptimizer(Adam(clipnorm=1.0)))
    before = copy.deepcopy(config)

    # Act
    optimizer = deserialize(config)

    # Assert
    assert config == before
    assert isinstance(optimizer, LossScaleOptimizer)
    assert isinstance(optimizer.inner_optimizer, Optimizer)


@pytest.mark.parametrize("patterns", ["(", ["a", "(b"], [3]], ids=str)
def test_a_broken_pattern_of_excluded_names_is_refused(patterns: Any) -> None:
    """`exclude_from_weight_decay` takes regular expressions, and says so of what is none."""
    # Act / Assert
    with pytest.raises(InvalidArgument, match="regular-expression fragments"):
        Adam().exclude_from_weight_decay(patterns)


def test_excluded_names_are_found_by_fragments() -> None:
    """As in Keras a fragment anywhere in the name is enough; a new call replaces the old."""
    # Arrange
    names = ["dense/kernel", "dense/bias", "norm/gamma"]
    optimizer = Adam(weight_decay=0.1)

    # Act
    one = optimizer.exclude_from_weight_decay("dense").excluded_from_weight_decay(names)
    two = optimizer.exclude_from_weight_decay(["bias$", "^norm"]).excluded_from_weight_decay(names)
    none = optimizer.exclude_from_weight_decay().excluded_from_weight_decay(names)

    # Assert
    assert (one, two, none) == (("dense/kernel", "dense/bias"), ("dense/bias", "norm/gamma"), ())


def test_excluded_names_outlive_a_change_of_hyperparameters() -> None:
    """A live change leaves weight decay where it was."""
    # Arrange
    optimizer = Adam(weight_decay=0.1).exclude_from_weight_decay(["bias"])

    # Act
    changed = optimizer.with_values({"weight_decay": 1})

    # Assert
    assert changed.weight_decay == 1.0
    assert changed.excluded_from_weight_decay(["bias", "kernel"]) == ("bias",)
