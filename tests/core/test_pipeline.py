"""One step: what takes part in it, in which order, and what is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell_core.layout import Arenas, Layout, Tensor
from stepwell_core.optimizers import SGD, Adagrad, Adam, Optimizer
from stepwell_core.pipeline import ACCUMULATOR, AVERAGE, Gradient, Pipeline

LAYOUT = Layout(
    [
        Tensor("a", (2,), "float32"),
        Tensor("b", (3,), "float32"),
        Tensor("c", (2,), "float64"),
        Tensor("d", (), "float32"),
    ]
)


class Training:
    """A model whose parameters all begin at 1, trained as plain Python."""

    def __init__(self, optimizer: Optimizer, layout: Layout = LAYOUT, **options: Any) -> None:
        self.layout = layout
        self.pipeline = Pipeline(layout, optimizer, **{"compiled": False, **options})
        self.weights = layout.new_arenas(1.0)
        self.slots = self.pipeline.new_slots()
        self.iterations = 0

    def push(self, in_place: bool = True, dtype: str = "native", **gradients: Any) -> None:
        """Make a call with gradients by name; a number stands for all elements."""
        selection = self.layout.select(gradients)
        arenas = selection.flatten(
            {t.name: np.full(t.shape, gradients[t.name], t.dtype) for t in selection}
        )
        if dtype == "bfloat16":  # the upper half of a float32
            narrow = {arena: array.astype("f4").view("u4") for arena, array in arenas.items()}
            arenas = {arena: (bits >> 16).astype("u2") for arena, bits in narrow.items()}
        elif dtype != "native":
            arenas = {arena: array.astype(dtype) for arena, array in arenas.items()}
        scale = self.pipeline.optimizer.loss_scale_factor
        scalars = self.pipeline.scalars(self.iterations, scale)
        target = self.weights if in_place else self.layout.new_arenas(np.nan)
        gradient = Gradient(selection, arenas, dtype, scale)
        with np.errstate(all="ignore"):
            self.pipeline.apply(self.weights, target, self.slots, gradient, scalars)
        self.weights = target
        self.iterations += 1

    def values(self, slot: str | None = None) -> dict[str, float]:
        """Return the one number that all elements of a tensor have, by name."""
        arenas: Arenas = self.weights if slot is None else self.slots[slot]
        views = self.layout.views(arenas)
        assert all((view == view.flat[0]).all() for view in views.values())
        return {name: float(view.flat[0]) for name, view in views.items()}


# Slots


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (SGD(), {}),
        (SGD(momentum=0.9, use_ema=True), {"momentum": 0, "average": 0}),
        (
            Adagrad(gradient_accumulation_steps=2),
            {"accumulator": 0.1, "gradient_accumulator": 0},
        ),
        (
            Adam(amsgrad=True, use_ema=True, gradient_accumulation_steps=2),
            {"momentum": 0, "velocity": 0, "velocity_hat": 0, "average": 0,
             "gradient_accumulator": 0},
        ),
    ],
    ids=["sgd", "ema", "adagrad", "all"],
)  # fmt: skip
def test_slots_are_the_rules_and_the_options(optimizer: Optimizer, slots: dict[str, float]) -> None:
    """In this order, with their initial values; an option that is off costs no memory."""
    # Act
    pipeline = Pipeline(LAYOUT, optimizer)

    # Assert
    assert list(pipeline.slot_values.items()) == list(slots.items())
    assert {name: arenas.keys() for name, arenas in pipeline.new_slots().items()} == dict.fromkeys(
        slots, LAYOUT.sizes.keys()
    )


# Tensors without a gradient


@pytest.mark.parametrize("in_place", [True, False])
def test_a_partial_push_touches_its_tensors_alone(in_place: bool) -> None:
    """The others keep parameters and slots, and do not decay."""
    # Arrange
    training = Training(SGD(0.5, momentum=0.5, weight_decay=0.5))
    training.push(a=1, b=1, c=1, d=1)
    before, momentum = training.values(), training.values("momentum")

    # Act
    training.push(in_place, b=1)

    # Assert
    changed = {n for n in before if training.values()[n] != before[n]}
    moved = {n for n in momentum if training.values("momentum")[n] != momentum[n]}
    assert (changed, moved) == ({"b"}, {"b"})


def test_a_tensor_without_a_gradient_takes_part_in_the_average() -> None:
    """`average` follows the parameter, wherever its gradient was."""
    # Arrange
    training = Training(SGD(0.5, use_ema=True, ema_momentum=0.5))
    training.push(a=1, b=1, c=1, d=1)

    # Act
    training.push(in_place=False, a=1)

    # Assert
    assert training.values() == {"a": 0.0, "b": 0.5, "c": 0.5, "d": 0.5}
    assert training.values(AVERAGE) == {"a": 0.25, "b": 0.5, "c": 0.5, "d": 0.5}


def test_a_missing_tensor_has_its_accumulator_emptied() -> None:
    """Keras resets all accumulators on the k-th call: what was gathered for it is lost."""
    # Arrange
    training = Training(SGD(0.5, gradient_accumulation_steps=2))

    # Act
    training.push(a=1, b=1)
    gathered = training.values(ACCUMULATOR)
    training.push(a=1)

    # Assert
    assert gathered == {"a": 1, "b": 1, "c": 0, "d": 0}
    assert training.values(ACCUMULATOR) == dict.fromkeys("abcd", 0.0)
    assert training.values() == {"a": 0.5, "b": 1, "c": 1, "d": 1}


# Accumulation and average


def test_k_calls_make_one_step_with_the_mean() -> None:
    """The first k - 1 change nothing but the accumulator."""
    # Arrange
    training = Training(SGD(0.5, gradient_accumulation_steps=3))

    # Act
    history = []
    for g in (1, 2, 6, 3):
        training.push(**dict.fromkeys("abcd", g))
        history.append((training.values()["a"], training.values(ACCUMULATOR)["a"]))

    # Assert
    assert history == [(1, 1), (1, 3), (-0.5, 0), (-0.5, 3)]


def test_the_average_moves_on_every_call() -> None:
    """Also while gradients are only accumulated; the first step's momentum is 0."""
    # Arrange
    training = Training(SGD(0.5, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.5))

    # Act
    averages = []
    for _ in range(4):
        training.push(a=1, b=1, c=1, d=1)
        averages.append(training.values(AVERAGE)["c"])

    # Assert
    assert averages == [1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("in_place", [True, False])
def test_the_average_overwrites_on_calls_that_only_accumulate(in_place: bool) -> None:
    """`(iterations // k + 1) % f == 0` holds for k calls in a row, as in Keras."""
    # Arrange
    options = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
    training = Training(SGD(0.5, gradient_accumulation_steps=2, **options))  # type: ignore[arg-type]
    for _ in range(2):
        training.push(a=1, b=1, c=1, d=1)
    training.weights["float32"][...] = 3.0

    # Act
    training.push(in_place, a=1, b=1, c=1, d=1)

    # Assert
    assert training.values()["a"] == training.values(AVERAGE)["a"] == 0.5 * 0.5 + 0.5 * 3
    assert training.values() == training.values(AVERAGE)


def test_the_loss_scale_is_taken_out_before_accumulating() -> None:
    """The accumulator holds gradients as they are."""
    # Arrange
    training = Training(SGD(0.5, gradient_accumulation_steps=2, loss_scale_factor=4.0))

    # Act
    training.push(a=8, b=8, c=8, d=8)

    # Assert
    assert training.values(ACCUMULATOR) == dict.fromkeys("abcd", 2.0)


# Order


def test_clipping_is_after_the_mean_and_before_the_rule() -> None:
    """Mean (1 + 9) / 2 = 5, clipped to 2; not (1 + 2) / 2."""
    # Arrange
    training = Training(SGD(0.5, clipvalue=2.0, gradient_accumulation_steps=2))

    # Act
    training.push(a=1, b=1, c=1, d=1)
    training.push(a=9, b=9, c=9, d=9)

    # Assert
    assert training.values() == dict.fromkeys("abcd", 0.0)


def test_decay_is_before_the_rule_and_not_clipped() -> None:
    """w - w * weight_decay * lr, then the step: 1 - 0.25 * 0.5 - 2 * 0.5."""
    # Arrange
    training = Training(SGD(0.5, weight_decay=0.25, clipvalue=2.0), excluded=["b"])

    # Act
    training.push(a=9, b=9, c=9)

    # Assert
    assert training.values() == {"a": -0.125, "b": 0.0, "c": -0.125, "d": 1.0}


def test_the_norm_is_that_of_the_unscaled_mean() -> None:
    """(4 + 12) / 4 / 2 = 2 in each of 4 elements is a norm of 4."""
    # Arrange
    layout = Layout([Tensor("a", (4,), "float32")])
    optimizer = SGD(0.5, clipnorm=1.0, loss_scale_factor=4.0, gradient_accumulation_steps=2)
    training = Training(optimizer, layout)

    # Act
    training.push(a=4)
    training.push(a=12)

    # Assert
    assert training.values() == {"a": 1 - 0.5 * 2 / 4}


def test_a_global_norm_is_over_all_arenas() -> None:
    """3 in one float32 and 4 in one float64 element are a norm of 5."""
    # Arrange
    layout = Layout([Tensor("a", (1,), "float32"), Tensor("b", (1,), "float64")])
    training = Training(SGD(1.0, global_clipnorm=2.5), layout)

    # Act
    training.push(a=3, b=4)

    # Assert
    assert training.values() == {"a": 1 - 1.5, "b": 1 - 2.0}


# Independence


@settings(max_examples=25)
@given(
    parts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    clip=st.sampled_from(["clipnorm", "global_clipnorm"]),
    decays=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_step_does_not_depend_on_how_the_rest_is_arranged(
    parts: list[int], clip: str, decays: bool, seed: int
) -> None:
    """A tensor takes the same step, to the bit, in a model with other tensors around it."""
    # Arrange
    rng = np.random.default_rng(seed)
    tensors = [Tensor(f"t{i}", (size,), "float32") for i, size in enumerate(parts)]
    arrays = {t.name: rng.standard_normal(t.shape).astype("f4") for t in tensors}
    optimizer = Adam(0.1, weight_decay=0.1 if decays else None, **{clip: 0.5})  # type: ignore[arg-type]
    results = []

    # Act
    for order in (tensors, tensors[::-1]):
        layout = Layout(order)
        pipeline = Pipeline(layout, optimizer, [tensors[0].name], compiled=False)
        weights, slots = layout.new_arenas(1.0), pipeline.new_slots()
        gradient = Gradient(layout, layout.flatten(arrays))
        pipeline.apply(weights, weights, slots, gradient, pipeline.scalars(0))
        results.append({name: view.tobytes() for name, view in layout.views(weights).items()})

    # Assert
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_format_of_a_payload_takes_the_same_step(dtype: str) -> None:
    """Gradients that every format holds exactly lead to the same bytes."""
    # Arrange
    native, other = Training(Adam(0.5)), Training(Adam(0.5))
    sent = {"a": 1, "b": -2.5, "c": 0.125, "d": 96}

    # Act
    native.push(**sent)
    other.push(dtype=dtype, **sent)

    # Assert
    assert other.values() == native.values()
    assert other.values("velocity") == native.values("velocity")


def test_a_gradient_is_only_read() -> None:
    """Its buffer belongs to the push, which may have to be sent again."""
    # Arrange
    optimizer = SGD(0.5, clipnorm=0.1, loss_scale_factor=2.0, gradient_accumulation_steps=2)
    pipeline = Pipeline(LAYOUT, optimizer, compiled=False)
    gradient = Gradient(LAYOUT, LAYOUT.new_arenas(3.0), loss_scale=2.0)
    weights, slots = LAYOUT.new_arenas(1.0), pipeline.new_slots()

    # Act
    for iterations in range(2):
        scalars = pipeline.scalars(iterations, 2.0)
        pipeline.apply(weights, weights, slots, gradient, scalars)

    # Assert
    assert all((array == 3.0).all() for array in gradient.arenas.values())


def test_the_source_is_only_read_when_there_is_a_target() -> None:
    """A version that readers hold never changes."""
    # Arrange
    training = Training(Adam(0.5, weight_decay=0.1, use_ema=True, ema_overwrite_frequency=1))
    held = training.weights

    # Act
    training.push(in_place=False, a=1, c=2)

    # Assert
    assert all((array == 1.0).all() for array in held.values())
    assert not any(np.isnan(array).any() for array in training.weights.values())
