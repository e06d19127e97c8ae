"""Aggregation: one gradient out of several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stepwell_core.aggregation import RunningSum
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


def taken(total: RunningSum) -> dict[str, Any]:
    """Return what a sum gives, by name, as plain numbers, divided by what it says."""
    result = total.take()
    assert result.loss_scale is not None
    views = result.layout.views(result.arenas)
    return {n: (view / view.dtype.type(result.loss_scale)).tolist() for n, view in views.items()}


def mean(gradients: list[Gradient], weights: list[float], **options: bool) -> dict[str, Any]:
    """Return the weighted mean by name, as plain numbers; the same compiled and not."""
    plain, compiled = RunningSum(LAYOUT, compiled=False), RunningSum(LAYOUT)
    for g, weight in zip(gradients, weights, strict=True):
        plain.add(g, weight, **options)
        compiled.add(g, weight, **options)
    result = taken(plain)
    assert result == taken(compiled)
    return result


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


@pytest.mark.parametrize("scales", [(4.0, 4.0), (4.0, 2.0), (4.0, None), (None, 4.0)], ids=str)
def test_a_loss_scale_that_is_kept_is_taken_out_all_the_same(
    scales: tuple[float | None, ...],
) -> None:
    """At the end if all have it, else on the way: the mean is the same."""
    # Arrange
    first, second = scales
    gradients = [
        gradient(a=[2 * (first or 1), 0], b=2 * (first or 1), loss_scale=first),
        gradient(a=[6 * (second or 1), 4 * (second or 1)], loss_scale=second),
    ]

    # Act
    result = mean(gradients, [1, 3], keeps_scale=True)

    # Assert
    assert result == {"a": [5, 3], "b": 2}


def test_a_sum_that_was_taken_or_cleared_begins_anew() -> None:
    """In the same memory: nothing of the old one is in the next."""
    # Arrange
    total = RunningSum(LAYOUT)
    total.add(gradient(a=[9, 9], b=9, loss_scale=3.0), 5, keeps_scale=True)
    first = total.take().arenas["float32"]
    total.add(gradient(a=[7, 7], b=7), 2)
    total.clear()

    # Act
    total.add(gradient(a=[2, 4]), 1)
    result = total.take()

    # Assert
    assert result.layout.names == ("a",)
    assert result.arenas["float32"].tolist() == [2, 4]
    assert np.shares_memory(first, result.arenas["float32"])


def test_tensors_that_were_sent_move_together_where_others_are_missing() -> None:
    """The result has the layout of a selection, end to end, though the sum has all tensors."""
    # Arrange
    layout = Layout(Tensor(name, (3,), "float32") for name in "abcd")
    total = RunningSum(layout)
    selection = layout.select("bd")

    # Act
    for _ in range(2):
        arena = np.arange(6, dtype=np.float32)
        total.add(Gradient(selection, {"float32": arena}), 1)
    result = total.take()

    # Assert
    assert (result.layout, result.loss_scale) == (selection, 2.0)
    assert result.arenas["float32"].tolist() == [0, 2, 4, 6, 8, 10]


def test_the_division_is_left_to_the_step_only_where_it_is_one_number() -> None:
    """One pass less for the usual step, where all tensors have the same contributors."""
    # Arrange
    same, other = RunningSum(LAYOUT), RunningSum(LAYOUT)
    for total in (same, other):
        total.add(gradient(a=[2, 0], b=2), 2)
    same.add(gradient(a=[2, 0], b=2), 1)
    other.add(gradient(a=[2, 0]), 1)

    # Act
    results = [total.take() for total in (same, other)]

    # Assert
    assert [result.loss_scale for result in results] == [3.0, 1.0]
    assert [result.arenas["float32"].tolist() for result in results] == [[6, 0], [2, 0]]


def test_a_sum_that_goes_on_in_memory_of_its_own_knows_which_values_it_has() -> None:
    """Weights and names say what the memory holds; a value has no weight and no divisor."""
    # Arrange
    memory = LAYOUT.new_arenas()
    first = RunningSum(LAYOUT, memory, state=("b",))
    first.add(gradient(a=[2, 0], b=7), 2)
    expected = first.divisor_with(["a", "b"], 1)

    # Act
    total = RunningSum(LAYOUT, memory, first.weights, state=("b",), values=first.values)
    total.add(gradient(a=[5, 3]), 1)
    result = total.take()

    # Assert
    assert (dict(first.weights), set(first.values)) == ({"a": 2.0}, {"b"})
    assert (result.loss_scale, expected) == (3.0, 3.0)
    assert result.arenas["float32"].tolist() == [9, 3]
    assert result.arenas["float64"].tolist() == [7]
    assert not total.values
