"""Aggregation: one gradient out of several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stepwell_core.aggregation import aggregate
from stepwell_core.gradient import Gradient
from stepwell_core.layout import Layout, Tensor

LAYOUT = Layout(
    [Tensor("a", (2,), "float32"), Tensor("b", (), "float64"), Tensor("c", (0,), "float32")]
)


def gradient(loss_scale: float | None = None, dtype: str = "native", **arrays: Any) -> Gradient:
    """Return a gradient of the named tensors."""
    selection = LAYOUT.select(arrays)
    arenas = selection.flatten(
        {t.name: np.array(arrays[t.name], t.dtype).reshape(t.shape) for t in selection}
    )
    if dtype != "native":
        arenas = {arena: array.astype(dtype) for arena, array in arenas.items()}
    return Gradient(selection, arenas, dtype, loss_scale)


def mean(gradients: list[Gradient], weights: list[float]) -> dict[str, Any]:
    """Return the weighted mean by name, as plain numbers; the same compiled and not."""
    results = [aggregate(LAYOUT, gradients, weights, compiled=c) for c in (False, True)]
    plain, compiled = (
        {name: view.tolist() for name, view in result.layout.views(result.arenas).items()}
        for result in results
    )
    assert plain == compiled
    assert results[0].loss_scale is None
    return plain


def test_the_mean_is_weighted() -> None:
    """(1 * 2 + 3 * 6) / 4."""
    # Act
    result = mean([gradient(a=[2, 0], b=2), gradient(a=[6, 4], b=6)], [1, 3])

    # Assert
    assert result == {"a": [5, 3], "b": 5}


def test_a_tensor_is_averaged_over_those_who_sent_it() -> None:
    """Whoever did not send it has no weight in it, and comes later or earlier as well."""
    # Act
    result = mean([gradient(a=[2, 0]), gradient(a=[6, 4], b=6), gradient(b=3)], [1, 3, 2])

    # Assert
    assert result == {"a": [5, 3], "b": (18 + 6) / 5}


def test_a_tensor_that_nobody_sent_is_missing() -> None:
    """The result has the sent tensors alone, in the model's order."""
    # Act
    result = mean([gradient(b=2), gradient(b=4)], [1, 1])

    # Assert
    assert result == {"b": 3}


def test_each_loss_scale_is_taken_out_first() -> None:
    """Gradients of different scales are comparable afterwards."""
    # Act
    result = mean([gradient(a=[8, 0], loss_scale=4.0), gradient(a=[4, 2])], [1, 1])

    # Assert
    assert result == {"a": [3, 1]}


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_each_gradient_has_its_own_format(dtype: str) -> None:
    """What one worker sends in half width is added to what another sends whole."""
    # Act
    result = mean([gradient(a=[2, 0], b=2, dtype=dtype), gradient(a=[4, 2], b=4)], [1, 1])

    # Assert
    assert result == {"a": [3, 1], "b": 3}


def test_the_order_of_summing_is_the_given_one() -> None:
    """(1e8 + 1) - 1e8 is 0 in float32, and in another order 1; both are what was asked for."""
    # Arrange
    one, plus, minus = (gradient(a=[x, 0]) for x in (1, 1e8, -1e8))

    # Act
    results = [mean(order, [1, 1, 1])["a"][0] for order in ([plus, one, minus], [plus, minus, one])]

    # Assert
    assert results == [0, float(np.float32(1) / np.float32(3))]


def test_contributions_are_only_read() -> None:
    """The buffers belong to those who wait for their result."""
    # Arrange
    gradients = [gradient(a=[2, 0], b=2), gradient(a=[6, 4], b=6)]
    before = [{d: array.copy() for d, array in g.arenas.items()} for g in gradients]

    # Act
    mean(gradients, [0.5, 0.5])

    # Assert
    for g, arenas in zip(gradients, before, strict=True):
        assert all(np.array_equal(array, arenas[d]) for d, array in g.arenas.items())
