"""Schedules: the values, the JSON and the refusals of Keras 3."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell_core import schedules
from stepwell_core.errors import InvalidArgument
from stepwell_core.schedules import (
    SCHEDULES,
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseTimeDecay,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
    deserialize,
)

os.environ.setdefault("KERAS_BACKEND", "numpy")  # read by Keras when it is imported

GOLDEN = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())
STEPS = sorted(
    {*range(60), *range(0, 3001, 7), *range(95, 105), *range(495, 505), *range(990, 1010)}
)
"""The first ones, those around ends of the cases, and every seventh."""

# Only +, -, * and /: the same on every CPU. A power, cosine or logarithm may be rounded otherwise.
EXACT_EVERYWHERE = {"PiecewiseConstantDecay", "InverseTimeDecay"}

CASES: dict[str, LearningRateSchedule] = {
    "exponential": ExponentialDecay(0.1, 33.3, 0.96),
    "exponential_staircase": ExponentialDecay(0.37, 33.3, 0.7, staircase=True),
    "exponential_of_a_negative_rate": ExponentialDecay(0.1, 7, -0.9),
    "piecewise": PiecewiseConstantDecay([100, 1000, 1001], [0.1, 0.033, -0.5, 0.0]),
    "piecewise_with_fractions": PiecewiseConstantDecay([-0.5, 9.5, 1000.999], [1.0, 0.7, 0.3, 0.1]),
    "piecewise_out_of_order": PiecewiseConstantDecay([500, 20, 700], [0.1, 0.2, 0.3, 0.7]),
    "polynomial": PolynomialDecay(0.1, 1000),
    "polynomial_power": PolynomialDecay(0.1, 777.7, 0.003, power=2.3),
    "polynomial_cycle": PolynomialDecay(0.1, 130, end_learning_rate=0.01, power=0.5, cycle=True),
    "polynomial_negative_power": PolynomialDecay(0.1, 1000, power=-1.0),
    "inverse_time": InverseTimeDecay(0.1, 37, 0.5),
    "inverse_time_staircase": InverseTimeDecay(0.1, 12.5, 0.3, staircase=True),
    "inverse_time_through_infinity": InverseTimeDecay(0.1, 1, -0.001),
    "cosine": CosineDecay(0.1, 1000),
    "cosine_alpha": CosineDecay(0.1, 2000, alpha=0.9),
    "cosine_warmup": CosineDecay(0.001, 1500, 0.07, warmup_target=0.3, warmup_steps=333),
    "cosine_warmup_of_no_steps": CosineDecay(0.001, 1500, warmup_target=0.3, warmup_steps=0),
    "restarts": CosineDecayRestarts(0.1, 50),
    "restarts_of_one_length": CosineDecayRestarts(0.1, 70, t_mul=1.0, m_mul=0.9, alpha=0.9),
    "restarts_that_shrink_to_nothing": CosineDecayRestarts(0.1, 300, t_mul=0.8, m_mul=1.1),
}
every_case = pytest.mark.parametrize("ours", CASES.values(), ids=CASES.keys())


@pytest.fixture(scope="module")
def keras() -> Any:
    """Give Keras on its NumPy backend, the oracle."""
    with warnings.catch_warnings(action="ignore"):
        module = pytest.importorskip("keras")
    if module.backend.backend() != "numpy":
        pytest.skip("Keras was imported with another backend than NumPy")
    return module


def keras_twin(keras: Any, ours: LearningRateSchedule) -> Any:
    """Return Keras's schedule with the same arguments."""
    return getattr(keras.optimizers.schedules, type(ours).__name__)(**ours.get_config())


def keras_rates(keras: Any, theirs: Any, steps: Any) -> list[Any]:
    """Return Keras's values as its optimizers get them: from an int variable."""
    iterations = keras.Variable(0, dtype="int", trainable=False)
    rates = []
    with np.errstate(all="ignore"):
        for step in steps:
            iterations.assign(step)
            rates.append(theirs(iterations))
    return rates


def bits(rates: Any) -> list[int]:
    """Return the bits of float32 values, with one pattern for all NaN."""
    assert {np.asarray(rate).dtype for rate in rates} == {np.dtype(np.float32)}
    plain = np.array(rates, np.float32)
    plain[np.isnan(plain)] = np.float32(np.nan)
    return [int(pattern) for pattern in plain.view(np.int32)]


# Values


every_length = pytest.mark.parametrize(
    "steps", [STEPS, pytest.param(range(3001), marks=pytest.mark.full)], ids=["some", "all"]
)


@pytest.mark.oracle
@every_length
@every_case
def test_every_step_has_the_bits_of_keras(
    keras: Any, ours: LearningRateSchedule, steps: Sequence[int]
) -> None:
    """A schedule gives Keras's float32 at each of the first 3001 steps."""
    # Arrange
    theirs = keras_twin(keras, ours)

    # Act
    expected, actual = keras_rates(keras, theirs, steps), [ours(step) for step in steps]

    # Assert
    assert bits(actual) == bits(expected)


# Short decimals, as people write them, and not only the round binary numbers that Hypothesis likes:
# most of them are rounded on the way to float32, so an operation in another order or dtype shows.
decimals = st.integers(-10_000, 10_000).map(lambda n: n / 1000)
fractions = st.integers(0, 1000).map(lambda n: n / 1000)
rates = decimals | fractions | st.floats(-10, 10)
factors = decimals | fractions | st.sampled_from([0.0, 1.0, 2.0]) | st.floats(-3, 3)
lengths = (
    st.integers(1, 2000) | st.integers(1, 10**6).map(lambda n: n / 1000) | st.floats(2.0**-20, 1e7)
)
any_schedule = st.one_of(
    st.builds(ExponentialDecay, rates, lengths, factors, st.booleans()),
    st.builds(InverseTimeDecay, rates, lengths, factors, st.booleans()),
    st.builds(PolynomialDecay, rates, lengths, rates, factors, st.booleans()),
    st.builds(
        CosineDecay,
        rates,
        lengths,
        alpha=rates,
        warmup_target=st.none() | rates,
        warmup_steps=st.integers(-10, 2000) | st.floats(0, 1e4),
    ),
    st.builds(CosineDecayRestarts, rates, lengths, factors, factors, rates),
    st.integers(1, 6).flatmap(
        lambda n: st.builds(
            PiecewiseConstantDecay,
            st.lists(st.integers(-5, 3000) | st.floats(-5, 3000), min_size=n, max_size=n),
            st.lists(rates, min_size=n + 1, max_size=n + 1),
        )
    ),
)
any_steps = st.lists(st.integers(0, 3000) | st.integers(0, 2**31 - 1), min_size=1, max_size=8)


@pytest.mark.oracle
@settings(max_examples=400, deadline=None, derandomize=True)
@given(ours=any_schedule, steps=any_steps)
def test_any_arguments_give_the_bits_of_keras(
    keras: Any, ours: LearningRateSchedule, steps: list[int]
) -> None:
    """Whatever the arguments and the step, also where Keras gives infinity or NaN, bits agree."""
    # Arrange
    theirs = keras_twin(keras, ours)

    # Act
    expected, actual = keras_rates(keras, theirs, steps), [ours(step) for step in steps]

    # Assert
    assert bits(actual) == bits(expected)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("integers", "floats"),
    [
        (ExponentialDecay(1, 10, 2), ExponentialDecay(1.0, 10.0, 2.0)),
        (PiecewiseConstantDecay([10], [2, 1]), PiecewiseConstantDecay([10.0], [2.0, 1.0])),
        (PolynomialDecay(1, 100, 0, 2), PolynomialDecay(1.0, 100.0, 0.0, 2.0)),
        (InverseTimeDecay(1, 10, 1), InverseTimeDecay(1.0, 10.0, 1.0)),
        (
            CosineDecay(0, 100, 0, warmup_target=1, warmup_steps=10),
            CosineDecay(0.0, 100.0, 0.0, warmup_target=1.0, warmup_steps=10.0),
        ),
        (CosineDecayRestarts(1, 10, 2, 1, 0), CosineDecayRestarts(1.0, 10.0, 2.0, 1.0, 0.0)),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_integers_mean_floats(
    keras: Any, integers: LearningRateSchedule, floats: LearningRateSchedule
) -> None:
    """Integer arguments give what Keras gives for the floats, not its int32 arithmetic."""
    # Arrange
    steps = range(0, 200, 7)

    # Act
    actual = [integers(step) for step in steps]

    # Assert
    assert bits(actual) == bits(keras_rates(keras, keras_twin(keras, floats), steps))
    assert len(set(bits(actual))) > 1


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["schedule"]["class_name"])
def test_recorded_values_of_keras_are_met_without_keras(case: dict[str, Any]) -> None:
    """The values that Keras gave on one machine are met on every other, up to rounding."""
    # Arrange
    schedule = deserialize(case["schedule"])
    expected = np.array(case["values"], np.float32)
    is_exact = case["schedule"]["class_name"] in EXACT_EVERYWHERE
    tolerance = 0.0 if is_exact else 4 * 2.0**-23  # four roundings of float32

    # Act
    actual = np.array([schedule(step) for step in GOLDEN["steps"]])

    # Assert
    assert np.all(abs(actual - expected) <= tolerance * (abs(expected) + expected.max()))


def test_recorded_values_name_their_origin_and_cover_all_schedules() -> None:
    """The golden file tells its Keras version and generator, and leaves no schedule out."""
    # Arrange
    origin = GOLDEN["origin"]

    # Act
    covered = {case["schedule"]["class_name"] for case in GOLDEN["cases"]}

    # Assert
    assert origin["keras"].startswith("3.")
    assert (Path(__file__).parents[2] / origin["generator"]).exists()
    assert covered == {schedule.__name__ for schedule in SCHEDULES}


def test_values_without_a_number_come_without_a_warning() -> None:
    """Infinity and NaN are values here, even where NumPy is told to raise."""
    # Arrange
    infinite, undefined = PolynomialDecay(0.1, 10, power=-1.0), ExponentialDecay(0.1, 7, -0.9)

    # Act
    with np.errstate(all="raise"):
        at_the_end, between = infinite(10), undefined(1)

    # Assert
    assert np.isinf(at_the_end)
    assert np.isnan(between)


def test_boundaries_beyond_int32_are_steps_like_others() -> None:
    """A boundary that Keras's int32 cannot hold still means that step."""
    # Arrange
    schedule = PiecewiseConstantDecay([2**40], [0.5, 0.25])

    # Act
    before, after = schedule(2**40), schedule(2**40 + 1)

    # Assert
    assert [before, after] == [0.5, 0.25]


# Configs


@pytest.mark.oracle
@every_case
def test_a_config_from_keras_gives_the_same_schedule(
    keras: Any, ours: LearningRateSchedule
) -> None:
    """What Keras serializes is read here, and serialized again as the same JSON."""
    # Arrange
    theirs = keras.optimizers.schedules.serialize(keras_twin(keras, ours))

    # Act
    read = deserialize(json.loads(json.dumps(theirs)))

    # Assert
    assert read == ours
    assert json.dumps(read.serialize()) == json.dumps(theirs)


@pytest.mark.oracle
@every_case
def test_our_config_gives_the_same_schedule_in_keras(
    keras: Any, ours: LearningRateSchedule
) -> None:
    """What is serialized here is read by Keras, and serialized again as the same JSON."""
    # Arrange
    sent = json.loads(json.dumps(ours.serialize()))

    # Act
    theirs = keras.optimizers.schedules.deserialize(sent)

    # Assert
    assert type(theirs).__name__ == type(ours).__name__
    assert json.dumps(keras.optimizers.schedules.serialize(theirs)) == json.dumps(sent)


@pytest.mark.oracle
def test_arguments_have_the_names_order_and_defaults_of_keras(keras: Any) -> None:
    """A positional call means the same here and in Keras, for each of the schedules."""
    for schedule in SCHEDULES:
        # Arrange
        theirs = inspect.signature(getattr(keras.optimizers.schedules, schedule.__name__))

        # Act
        ours = inspect.signature(schedule)

        # Assert
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]


@every_case
def test_the_short_form_in_any_case_is_enough(ours: LearningRateSchedule) -> None:
    """`class_name` in any case and `config` are enough to read a schedule."""
    # Arrange
    short = {"class_name": type(ours).__name__.upper(), "config": ours.get_config()}

    # Act
    read = deserialize(short)

    # Assert
    assert read == ours


def test_lists_are_tuples_inside_and_lists_in_the_config() -> None:
    """A schedule cannot be changed through the lists it was made from or gives back."""
    # Arrange
    boundaries = [10, 20]
    schedule = PiecewiseConstantDecay(boundaries, [0.3, 0.2, 0.1])

    # Act
    boundaries.append(30)
    schedule.get_config()["values"].clear()

    # Assert
    assert schedule.boundaries == (10, 20)
    assert schedule.get_config()["values"] == [0.3, 0.2, 0.1]


def test_a_schedule_is_a_value() -> None:
    """Schedules with equal arguments are equal, hash alike, and cannot be changed."""
    # Arrange
    schedule = ExponentialDecay(0.1, 10, 0.9)

    # Act
    again = ExponentialDecay(0.1, 10, 0.9)

    # Assert
    assert schedule == again
    assert hash(schedule) == hash(again)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.decay_rate = 0.5  # type: ignore[misc]


def test_numpy_scalars_are_kept_as_plain_numbers() -> None:
    """A NumPy scalar is taken as the number it holds, so that the config is JSON."""
    # Arrange
    arguments = (np.float32(0.5), np.int64(10), np.float64(0.9), np.bool_(True))

    # Act
    schedule = ExponentialDecay(*arguments)  # type: ignore[arg-type]

    # Assert
    assert schedule == ExponentialDecay(0.5, 10, 0.9, True)
    assert json.loads(json.dumps(schedule.get_config())) == schedule.get_config()


def test_a_name_of_none_is_taken() -> None:
    """Configs of Keras 2 carry `"name": null`, as does an example in Keras 3's documentation."""
    # Arrange
    arguments = PolynomialDecay(0.1, 10).get_config() | {"name": None}

    # Act
    read = deserialize({"class_name": "PolynomialDecay", "config": arguments})

    # Assert
    assert read.get_config()["name"] is None


# Refusals


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("class_name", "arguments", "received"),
    [
        ("ExponentialDecay", (0.1, 0, 0.9), "decay_steps=0"),
        ("ExponentialDecay", (0.1, -5, 0.9), "decay_steps=-5"),
        ("PolynomialDecay", (0.1, 0), "decay_steps=0"),
        ("InverseTimeDecay", (0.1, -0.5, 0.9), "decay_steps=-0.5"),
        ("CosineDecay", (0.1, 0), "decay_steps=0"),
        ("CosineDecayRestarts", (0.1, 0), "first_decay_steps=0"),
        ("PiecewiseConstantDecay", ([1, 2], [0.1, 0.2]), "boundaries"),
        ("PiecewiseConstantDecay", ([], []), "boundaries"),
    ],
)
def test_what_keras_refuses_is_refused(
    keras: Any, class_name: str, arguments: tuple[Any, ...], received: str
) -> None:
    """A value outside the range that Keras takes is an error in both, with the value in it."""
    # Arrange
    ours, theirs = getattr(schedules, class_name), getattr(keras.optimizers.schedules, class_name)

    # Act
    with pytest.raises(ValueError, match="Received: "):
        theirs(*arguments)
    with pytest.raises(InvalidArgument) as refusal:
        ours(*arguments)

    # Assert
    assert f"Received: {received}" in refusal.value.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_learning_rate": "0.1"}, "must be a number. Received: initial_learning_rate='0"),
        ({"initial_learning_rate": None}, "must be a number. Received: initial_learning_rate=None"),
        ({"initial_learning_rate": True}, "must be a number. Received: initial_learning_rate=True"),
        ({"initial_learning_rate": 1j}, "must be a number"),
        ({"initial_learning_rate": [0.1]}, "must be a number"),
        ({"initial_learning_rate": np.ones(3)}, "must be a number"),
        ({"initial_learning_rate": float("nan")}, "finite in float32. Received: initial"),
        ({"initial_learning_rate": float("inf")}, "finite in float32"),
        ({"initial_learning_rate": 1e39}, "finite in float32"),
        ({"decay_rate": 10**5000}, "<int too long to show>"),
        ({"decay_rate": [10**5000]}, "<list too long to show>"),
        ({"decay_steps": 1e-60}, "must be > 0"),
        ({"decay_steps": {"a": 1}}, "must be a number"),
        ({"staircase": 1}, "must be true or false. Received: staircase=1"),
        ({"staircase": "true"}, "must be true or false"),
        ({"name": 7}, "must be a printable string"),
        ({"name": "a/b"}, "without `/`. Received: name='a/b'"),
        ({"name": "a\nb"}, "must be a printable string"),
        ({"name": "\ud800"}, "must be a printable string"),
        ({"name": "a" * 257}, "at most 256 characters"),
    ],
)
def test_a_value_of_another_type_or_size_is_refused(
    arguments: dict[str, Any], message: str
) -> None:
    """Configs come from strangers: what is not a plain finite number, flag or name is an error."""
    # Arrange
    valid = {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.9}

    # Act
    with pytest.raises(InvalidArgument) as refusal:
        ExponentialDecay(**(valid | arguments))

    # Assert
    assert message in refusal.value.message
    assert len(refusal.value.message) < 300


@pytest.mark.parametrize(
    ("boundaries", "values", "message"),
    [
        ("12", [0.1, 0.2, 0.3], "must be a list of numbers. Received: boundaries='12'"),
        ([1, 2], {"0": 0.1}, "must be a list of numbers. Received: values={'0': 0.1}"),
        ([1, "2"], [0.1, 0.2, 0.3], "must be a number. Received: boundaries[1]='2'"),
        ([1], [0.1, float("nan")], "finite in float32. Received: values[1]=nan"),
        ([1], [[0.1], 0.2], "must be a number. Received: values[0]=[0.1]"),
        ([1] * 10_001, [0.1] * 10_002, "at most 10000 numbers. Received: boundaries of length"),
        ([1] * 9_000, [0.1] * 9_000, "boundaries of length 9000, and values of length 9000"),
        ([], [0.1], "at least one number"),
    ],
)
def test_lists_that_are_not_short_lists_of_numbers_are_refused(
    boundaries: Any, values: Any, message: str
) -> None:
    """The error for a bad list names the place in it, or the lengths, and never all of it."""
    # Act
    with pytest.raises(InvalidArgument) as refusal:
        PiecewiseConstantDecay(boundaries, values)

    # Assert
    assert message in refusal.value.message
    assert len(refusal.value.message) < 300


EXPONENTIAL = {"initial_learning_rate": 0.1, "decay_steps": 10, "decay_rate": 0.9}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "must be a map"),
        ("ExponentialDecay", "must be a map"),
        ({}, "Received: class_name=None"),
        ({"class_name": ["ExponentialDecay"], "config": {}}, "must be one of ExponentialDecay, Pi"),
        ({"class_name": "StepDecay", "config": {}}, "Received: class_name='StepDecay'"),
        ({"class_name": "ExponentialDecay"}, "Missing: initial_learning_rate, decay_steps, decay"),
        ({"class_name": "ExponentialDecay", "config": [0.1, 10, 0.9]}, "must be a map of argument"),
        (
            {"class_name": "ExponentialDecay", "config": EXPONENTIAL | {"decay": 1, 2: 3}},
            "ExponentialDecay takes initial_learning_rate, decay_steps, decay_rate, staircase, "
            "name. Received: unknown arguments=['decay', 2]",
        ),
        (
            {"class_name": "ExponentialDecay", "config": {"decay_steps": 10}},
            "Missing: initial_learning_rate, decay_rate. Received: arguments=['decay_steps']",
        ),
        (
            {"class_name": "ExponentialDecay", "config": EXPONENTIAL, "module": "mine"},
            "Received: module='mine'",
        ),
        (
            {
                "class_name": "ExponentialDecay",
                "config": EXPONENTIAL,
                "registered_name": "mine>ExponentialDecay",
            },
            "Received: registered_name='mine>ExponentialDecay'",
        ),
    ],
)
def test_a_config_that_is_not_of_keras_is_refused(config: Any, message: str) -> None:
    """An unknown class, module or argument is an error that tells what is known."""
    # Act
    with pytest.raises(InvalidArgument) as refusal:
        deserialize(config)

    # Assert
    assert message in refusal.value.message
