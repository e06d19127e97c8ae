"""Dynamic loss scaling: Keras's scale, step by step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell_core import keras_config
from stepwell_core.errors import InvalidArgument
from stepwell_core.layout import Layout, Tensor
from stepwell_core.loss_scale import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    LossScale,
    LossScaleOptimizer,
)
from stepwell_core.optimizers import SGD, Adam
from stepwell_core.pipeline import Gradient, Pipeline

from tests.core.keras_oracle import KerasModel

LAYOUT = Layout([Tensor("kernel", (4,), "float32"), Tensor("bias", (2,), "float32")])
BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


@pytest.mark.oracle
@settings(max_examples=25)
@given(
    growth=st.integers(1, 4),
    initial=st.sampled_from([2.0**15, 1000.0, 3]),
    kinds=st.lists(st.sampled_from(["good", "good", "good", *BAD]), min_size=1, max_size=14),
)
def test_scale_counter_and_parameters_equal_keras(
    growth: int, initial: float, kinds: list[str]
) -> None:
    """Halved and skipped on NaN or infinity anywhere, doubled after good steps, as in Keras."""
    # Arrange
    pytest.importorskip("keras")
    optimizer = LossScaleOptimizer(Adam(0.1, amsgrad=True), initial, growth)
    rng = np.random.default_rng(len(kinds))
    parameters = {t.name: rng.standard_normal(t.shape).astype("f4") for t in LAYOUT}
    theirs = KerasModel(parameters, keras_config.serialize(optimizer))
    pipeline = Pipeline(LAYOUT, optimizer.inner_optimizer, compiled=False)
    weights, slots = LAYOUT.flatten(parameters), pipeline.new_slots()
    scale, iterations = LossScale.initial(optimizer), 0

    for kind in kinds:
        arrays = {t.name: rng.standard_normal(t.shape).astype("f4") * 100 for t in LAYOUT}
        if kind in BAD:
            arrays["bias"][1] = BAD[kind]

        # Act
        theirs.apply(arrays)
        gradient = Gradient(LAYOUT, LAYOUT.flatten(arrays), loss_scale=scale.scale)
        if gradient.is_finite():
            scalars = pipeline.scalars(iterations, scale.scale)
            pipeline.apply(weights, weights, slots, gradient, scalars)
            scale, iterations = scale.after_finite(growth), iterations + 1
        else:
            scale = scale.after_nonfinite()

        # Assert
        assert np.float32(scale.scale) == np.asarray(theirs.optimizer.dynamic_scale.value)
        assert scale.good_steps == np.asarray(theirs.optimizer.step_counter.value)
        for name, view in LAYOUT.views(weights).items():
            assert view.tobytes() == theirs.parameters[name].tobytes()


def test_the_scale_doubles_after_good_steps_in_a_row() -> None:
    """With `dynamic_growth_steps` of 3, the third good step doubles it and begins anew."""
    # Arrange
    scale = LossScale(8.0)

    # Act
    scales = []
    for _ in range(6):
        scale = scale.after_finite(3)
        scales.append((scale.scale, scale.good_steps))

    # Assert
    assert scales == [(8, 1), (8, 2), (16, 0), (16, 1), (16, 2), (32, 0)]


def test_a_bad_step_halves_the_scale_and_forgets_the_good_ones() -> None:
    """The counter begins at zero again."""
    # Act
    scale = LossScale(8.0, good_steps=2).after_nonfinite()

    # Assert
    assert scale == LossScale(4.0, 0)


def test_the_scale_never_becomes_zero_or_infinite() -> None:
    """Neither halving nor doubling for ever leads where the other cannot lead back."""
    # Arrange
    low = high = LossScale(3.0)

    # Act
    for _ in range(400):
        low, high = low.after_nonfinite(), high.after_finite(1)

    # Assert
    assert (low.scale, high.scale) == (SMALLEST_SCALE, LARGEST_SCALE)
    assert np.isfinite(np.float32(1) / np.float32(low.scale))


def test_the_scale_is_a_float32() -> None:
    """An initial scale is rounded as Keras's variable rounds it."""
    # Act
    scale = LossScale.initial(LossScaleOptimizer(SGD(), initial_scale=1000.1))

    # Assert
    assert scale == LossScale(float(np.float32(1000.1)))


def test_the_inner_optimizers_own_scale_is_switched_off() -> None:
    """Gradients are not divided twice; patterns of weight decay stay."""
    # Arrange
    inner = SGD(0.5, loss_scale_factor=128.0).exclude_from_weight_decay(["bias"])

    # Act
    optimizer = LossScaleOptimizer(inner)

    # Assert
    assert optimizer.inner_optimizer.loss_scale_factor is None
    assert optimizer.inner_optimizer.excluded_patterns == ("bias",)
    assert inner.loss_scale_factor == 128.0


def test_tensors_are_excluded_from_the_inner_weight_decay() -> None:
    """The call goes through to the optimizer that decays."""
    # Act
    optimizer = LossScaleOptimizer(SGD(weight_decay=0.1)).exclude_from_weight_decay(["bias"])

    # Assert
    assert optimizer.inner_optimizer.excluded_from_weight_decay(LAYOUT.names) == ("bias",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial_scale": 0}, "Received: initial_scale=0"),
        ({"initial_scale": -1.0}, "Received: initial_scale=-1.0"),
        ({"initial_scale": 1e-60}, "Received: initial_scale=1e-60"),
        ({"initial_scale": 1e60}, "Received: initial_scale=1e+60"),
        ({"initial_scale": 10**400}, "Received: initial_scale=1000"),
        ({"initial_scale": float("nan")}, "Received: initial_scale=nan"),
        ({"initial_scale": float("inf")}, "Received: initial_scale=inf"),
        ({"initial_scale": True}, "Received: initial_scale=True"),
        ({"initial_scale": "2"}, "Received: initial_scale='2'"),
        ({"initial_scale": None}, "Received: initial_scale=None"),
        ({"dynamic_growth_steps": 0}, "Received: dynamic_growth_steps=0"),
        ({"dynamic_growth_steps": 2.0}, "Received: dynamic_growth_steps=2.0"),
        ({"dynamic_growth_steps": True}, "Received: dynamic_growth_steps=True"),
        ({"dynamic_growth_steps": 2**31}, "Received: dynamic_growth_steps=2147483648"),
        ({"name": "a/b"}, "Received: name='a/b'"),
        ({"inner_optimizer": "sgd"}, "must be an optimizer. Received: str"),
        ({"inner_optimizer": LossScaleOptimizer(SGD())}, "must be an optimizer"),
    ],
    ids=str,
)
def test_a_value_outside_its_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    """The error says what was received."""
    # Act
    with pytest.raises(InvalidArgument) as refusal:
        LossScaleOptimizer(**({"inner_optimizer": SGD()} | arguments))

    # Assert
    assert message in refusal.value.message


def test_its_config_is_plain_json() -> None:
    """Serialized as a whole, the inner optimizer included."""
    # Arrange
    optimizer = LossScaleOptimizer(Adam(0.5), 4.0, 7, name="scaled")

    # Act
    config = json.loads(json.dumps(keras_config.serialize(optimizer)))

    # Assert
    assert config["config"]["inner_optimizer"]["class_name"] == "Adam"
    assert keras_config.deserialize(config) == LossScaleOptimizer(
        Adam(0.5, name="adam"), 4.0, 7, name="scaled"
    )
