"""Parameters and slots equal Keras's NumPy backend to the bit, whatever the options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stepwell_core import keras_config
from stepwell_core.layout import Layout
from stepwell_core.optimizers import Optimizer
from stepwell_core.pipeline import Gradient, Pipeline

from tests.core.keras_oracle import KerasModel

pytest.importorskip("keras", reason="Keras is the oracle; golden files run without it")
pytestmark = pytest.mark.oracle

NORM_TOLERANCE = 1e-6

rules = st.one_of(
    st.fixed_dictionaries(
        {
            "class_name": st.just("SGD"),
            "config": st.fixed_dictionaries(
                {"momentum": st.sampled_from([0.0, 0.9, 1.0]), "nesterov": st.booleans()}
            ),
        }
    ),
    st.fixed_dictionaries(
        {
            "class_name": st.just("Adagrad"),
            "config": st.fixed_dictionaries(
                {
                    "initial_accumulator_value": st.sampled_from([0.0, 0.1]),
                    "epsilon": st.sampled_from([1e-7, 1e-3]),
                }
            ),
        }
    ),
    st.fixed_dictionaries(
        {
            "class_name": st.just("Adam"),
            "config": st.fixed_dictionaries(
                {
                    "beta_1": st.sampled_from([0.9, 0.5, 0.0]),
                    "beta_2": st.sampled_from([0.999, 0.9]),
                    "epsilon": st.sampled_from([1e-7, 1e-3]),
                    "amsgrad": st.booleans(),
                }
            ),
        }
    ),
)
learning_rates = st.one_of(
    st.sampled_from([0.1, 0.01, 0.001]),
    st.just(
        {
            "module": "keras.optimizers.schedules",
            "class_name": "ExponentialDecay",
            "registered_name": None,
            "config": {"initial_learning_rate": 0.1, "decay_steps": 3, "decay_rate": 0.7},
        }
    ),
    st.just(
        {
            "module": "keras.optimizers.schedules",
            "class_name": "PiecewiseConstantDecay",
            "registered_name": None,
            "config": {"boundaries": [2, 5], "values": [0.1, 0.05, 0.01]},
        }
    ),
)
clips = st.one_of(
    st.just({}),
    st.sampled_from([0.0, 0.05, 1.0]).map(lambda v: {"clipnorm": v}),
    st.sampled_from([0.05, 1.0]).map(lambda v: {"global_clipnorm": v}),
    st.sampled_from([0.01, 1.0]).map(lambda v: {"clipvalue": v}),
)
averages = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "use_ema": st.just(True),
            "ema_momentum": st.sampled_from([0.99, 0.5, 0.0, 1.0]),
            "ema_overwrite_frequency": st.sampled_from([None, 1, 3]),
        }
    ),
)
others = st.fixed_dictionaries(
    {},
    optional={
        "weight_decay": st.sampled_from([0.004, 0.1]),
        "loss_scale_factor": st.sampled_from([128.0, 3.0]),
        "gradient_accumulation_steps": st.sampled_from([2, 3]),
    },
)
shapes = st.one_of(
    st.lists(
        st.sampled_from([(), (1,), (0,), (3, 0, 2), (7,), (3, 5), (2, 3, 4)]),
        min_size=1,
        max_size=6,
    ),
    st.just([(3,)] * 40),
    st.just([(70_001,), (2, 2)]),
)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an optimizer's JSON with all options in combination."""
    rule = draw(rules)
    options = draw(clips) | draw(averages) | draw(others)
    return {
        "class_name": rule["class_name"],
        "config": {"learning_rate": draw(learning_rates), **rule["config"], **options},
    }


@st.composite
def runs(draw: st.DrawFn, *, most_steps: int) -> dict[str, Any]:
    """Draw everything one comparison needs."""
    chosen = draw(shapes)
    return {
        "config": draw(configurations()),
        "shapes": chosen,
        "dtypes": [draw(st.sampled_from(["float32", "float64"]))] * len(chosen)
        if draw(st.booleans())
        else [("float32", "float64")[i % 2] for i in range(len(chosen))],
        "excludes": draw(st.booleans()),
        "misses": draw(st.sampled_from([0.0, 0.3])),
        "steps": draw(st.integers(1, most_steps)),
        "seed": draw(st.integers(0, 1 << 30)),
    }


def train_both(run: dict[str, Any], *, compiled: bool) -> None:
    """Train one model with Keras and with the pipeline, and compare after every step."""
    rng = np.random.default_rng(run["seed"])
    names = [f"{'bias' if i % 3 else 'kernel'}_{i}" for i in range(len(run["shapes"]))]
    parameters = {
        name: np.asarray(rng.standard_normal(shape), dtype)
        for name, shape, dtype in zip(names, run["shapes"], run["dtypes"], strict=True)
    }
    keras_model = KerasModel(parameters, run["config"])
    optimizer = keras_config.deserialize(run["config"])
    assert isinstance(optimizer, Optimizer)
    if run["excludes"]:
        keras_model.optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    layout = Layout.of(parameters)
    pipeline = Pipeline(
        layout, optimizer, optimizer.excluded_from_weight_decay(layout.names), compiled=compiled
    )
    weights, slots = layout.flatten(parameters), pipeline.new_slots()
    largest_change = dict.fromkeys(names, 0.0)
    largest_slots = {slot: dict.fromkeys(names, 0.0) for slot in slots}
    for step in range(run["steps"]):
        gradients = {
            name: np.asarray(
                rng.standard_normal(tensor.shape) * 10 ** rng.uniform(-6, 2, tensor.shape),
                tensor.dtype,
            )
            for name, tensor in zip(names, layout.tensors, strict=True)
            if rng.random() >= run["misses"]
        }
        if not gradients:
            continue
        keras_model.apply(gradients)
        selection = layout.select(gradients)
        gradient = Gradient(
            selection, selection.flatten(gradients), loss_scale=optimizer.loss_scale_factor
        )
        iterations = int(np.asarray(keras_model.optimizer._iterations.value)) - 1
        scalars = pipeline.scalars(iterations, optimizer.loss_scale_factor)
        target = weights if step % 2 or not scalars.changes_parameters else layout.new_arenas(None)
        pipeline.apply(weights, target, slots, gradient, scalars)
        weights = target
        ours = layout.views(weights)
        for name, value in ours.items():
            change = np.abs(value.astype(float) - parameters[name])
            largest_change[name] = max(largest_change[name], float(change.max(initial=0.0)))
        compare(ours, keras_model.parameters, largest_change, exact=not optimizer.clips_by_norm)
        for slot, arenas in slots.items():
            theirs, largest = keras_model.slot(slot), largest_slots[slot]
            for name, value in theirs.items():  # what was larger once was rounded as such
                largest[name] = max(largest[name], float(np.abs(value).max(initial=0.0)))
            compare(layout.views(arenas), theirs, largest, exact=not optimizer.clips_by_norm)


def compare(
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    largest: dict[str, float],
    *,
    exact: bool,
) -> None:
    """Compare tensor by tensor: the same bits, or within `NORM_TOLERANCE` of the largest so far."""
    for name, value in ours.items():
        expected = np.asarray(theirs[name])
        assert value.dtype == expected.dtype
        if exact:
            assert value.tobytes() == expected.tobytes(), name
        else:
            difference = float(np.abs(value.astype(float) - expected).max(initial=0.0))
            rounding = float(np.abs(expected).max(initial=0.0)) * np.finfo(expected.dtype).eps
            assert difference <= NORM_TOLERANCE * largest[name] + rounding, (name, difference)


SMALL_AFTER_LARGE = {
    "config": {
        "class_name": "Adam",
        "config": {"learning_rate": 0.1, "beta_1": 0.0, "global_clipnorm": 0.05},
    },
    "shapes": [(3,)] * 40,
    "dtypes": ["float32", "float64"] * 20,
    "excludes": False,
    "misses": 0.0,
    "steps": 2,
    "seed": 2,
}
"""A momentum that is a fiftieth of the last one: `m + (g - m)` has the rounding of the larger."""


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@example(run=SMALL_AFTER_LARGE)
@given(run=runs(most_steps=6).filter(lambda run: max(map(np.prod, run["shapes"])) < 1000))
def test_every_option_equals_keras_as_plain_python(run: dict[str, Any]) -> None:
    """The loops that Numba compiles, run as Python, give Keras's bits for any options at once."""
    train_both(run, compiled=False)


@pytest.mark.full
@pytest.mark.timeout(600)  # from a cold cache most of it is compilation, two kernels an example
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(run=runs(most_steps=40))
def test_every_option_equals_keras_compiled(run: dict[str, Any]) -> None:
    """The compiled loops give Keras's bits for any options at once, in place and not."""
    train_both(run, compiled=True)
