"""Norms of gradients and of steps: equal to NumPy's, and estimated where the model is large."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from stepwell_core import norms
from stepwell_core.gradient import Gradient
from stepwell_core.layout import Layout, Tensor
from stepwell_core.norms import ParametersBefore, gradient_norm

LAYOUT = Layout([Tensor("a", (3, 4), "float32"), Tensor("b", (5,), "float64")])
ENCODED = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("dtype", ["native", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("loss_scale", [None, 8.0])
def test_the_norm_of_a_gradient_is_that_of_all_its_elements_unscaled(dtype, loss_scale):
    """Over both arenas, whatever the elements are on their way."""
    random = np.random.default_rng(7)
    arenas = LAYOUT.new_payload(dtype)
    total = 0.0
    for array in arenas.values():
        drawn = random.normal(size=array.size)
        encoded = drawn.astype(ENCODED.get(dtype, array.dtype))
        array[...] = encoded.view(array.dtype) if array.itemsize == 2 else encoded
        total += float(np.sum((encoded.astype(np.float64) / (loss_scale or 1.0)) ** 2))

    norm = gradient_norm(Gradient(LAYOUT, arenas, dtype, loss_scale))

    assert norm == pytest.approx(math.sqrt(total), rel=1e-6)


def test_the_norm_of_a_part_is_that_of_the_part():
    """A push may have some tensors only."""
    selection = LAYOUT.select(["b"])

    norm = gradient_norm(Gradient(selection, {"float64": np.full(5, 2.0)}))

    assert norm == pytest.approx(math.sqrt(20))


def test_values_of_state_have_no_part_in_a_gradients_norm():
    """They are in its arenas, before, between and behind what is optimized."""
    layout = Layout(Tensor(name, (2,), "float32") for name in "abcd")
    arena = np.float32([9, 9, 2, 2, 9, 9, 1, 1])

    norm = gradient_norm(Gradient(layout, {"float32": arena}, loss_scale=0.5), {"a", "c", "x"})

    assert norm == pytest.approx(math.sqrt(4 * (4 + 4 + 1 + 1)))


@pytest.mark.parametrize("most", [1 << 18, 1 << 12])
def test_values_of_state_have_no_part_in_an_updates_norm(monkeypatch, most):
    """Of a whole copy and of one in blocks, whose places are worked out."""
    monkeypatch.setattr(norms, "EXACT_ELEMENTS", most)
    names = {"a": 5000, "s": 3000, "b": 1, "t": 20_000, "c": 9000}
    layout = Layout(Tensor(name, (size,), "float32") for name, size in names.items())
    before = layout.new_arenas(0.0)
    kept = ParametersBefore(before, layout, ("s", "t"))
    changed = {"float32": np.full(before["float32"].size, 3, np.float32)}
    for name in ("s", "t"):
        segment = layout.segments[name]
        changed["float32"][segment.start : segment.stop] = 1e6

    kept.keep(before)
    norm = kept.update_norm(changed)

    assert norm == pytest.approx(3 * math.sqrt(14_001), rel=0.25 if most < 1 << 18 else 1e-6)


def test_what_is_not_finite_has_a_norm_that_is_not():
    """A model with on_nonfinite="allow" makes such steps."""
    arenas = LAYOUT.new_arenas(1.0)
    arenas["float32"][3] = np.inf

    assert gradient_norm(Gradient(LAYOUT, arenas)) == math.inf


def test_the_norm_of_an_update_is_that_of_the_difference():
    """In place or into another buffer, which look the same from here; again and again."""
    before = LAYOUT.new_arenas(1.0)
    kept = ParametersBefore(before)

    kept.keep(before)
    before["float32"] += 2
    first = kept.update_norm(before)
    kept.keep(before)
    second = kept.update_norm({d: a - 1 for d, a in before.items()})

    assert first == pytest.approx(math.sqrt(12 * 4))
    assert second == pytest.approx(math.sqrt(12 + 5))


def test_of_a_large_model_the_norm_is_an_estimate_of_bounded_cost(monkeypatch):
    """Evenly spaced blocks stand for all; drawn updates come out within some per cent."""
    monkeypatch.setattr(norms, "EXACT_ELEMENTS", 1 << 14)
    random = np.random.default_rng(3)
    before = {"float32": random.normal(size=(1 << 18) + 77).astype(np.float32)}
    step = random.normal(size=before["float32"].size).astype(np.float32)
    kept = ParametersBefore(before)

    kept.keep(before)
    norm = kept.update_norm({"float32": before["float32"] + step})

    assert kept._kept["float32"].size <= 1 << 14
    assert norm == pytest.approx(float(np.linalg.norm(step.astype(np.float64))), rel=0.03)


def test_tensors_without_elements_have_no_norm():
    """They take part in nothing."""
    layout = Layout([Tensor("empty", (0, 3), "float32")])
    arenas = layout.new_arenas(0.0)
    kept = ParametersBefore(arenas)

    kept.keep(arenas)

    assert gradient_norm(Gradient(layout, arenas)) == 0
    assert kept.update_norm(arenas) == 0
