"""Reductions: norms that depend on no arrangement, and bad elements that cannot hide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell_core.kernels import (
    BLOCK_ELEMENTS,
    CONSTANTS,
    Stages,
    aggregate_kernel,
    finite_kernel,
    squares_kernel,
)

ONES = np.ones(CONSTANTS, np.float32)


def squares(g: np.ndarray, runs: list[list[int]], *, compiled: bool = True) -> np.ndarray:
    """Return the squared norms of runs of a gradient."""
    result = np.empty(len(runs))
    kernel = squares_kernel(Stages(payload=g.dtype.name), compiled=compiled)
    kernel(g, np.empty(0, g.dtype), np.array(runs), np.ones(CONSTANTS, g.dtype), result)
    return result


@given(
    size=st.sampled_from([0, 1, 7, 8, 9, 1000, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS + 3]),
    before=st.integers(0, 5000),
    seed=st.integers(0, 99),
)
def test_a_norm_depends_on_the_tensor_alone(size: int, before: int, seed: int) -> None:
    """Wherever in a gradient a tensor lies, and whatever lies beside it, its norm has one value."""
    # Arrange
    rng = np.random.default_rng(seed)
    tensor = rng.standard_normal(size).astype(np.float32)
    other = rng.standard_normal(before).astype(np.float32)

    # Act
    alone = squares(tensor, [[0, size, 0]])
    among = squares(
        np.concatenate([other, tensor, other]),
        [[7, 7 + before, 0], [0, size, before], [0, before, before + size]],
    )

    # Assert
    assert among[1] == alone[0]
    assert among[2] == among[0]


@pytest.mark.parametrize("size", [5, 100_003])
def test_a_norm_is_summed_in_float64(size: int) -> None:
    """Float32 sums lose digits and overflow at 1e19; these do neither."""
    # Arrange
    rng = np.random.default_rng(1)
    small = rng.standard_normal(size).astype(np.float32)
    large = np.full(size, 1e30, np.float32)

    # Act
    (of_small,) = squares(small, [[0, size, 0]])
    (of_large,) = squares(large, [[0, size, 0]])

    # Assert
    exact = math.fsum(float(x) ** 2 for x in small)
    assert abs(of_small - exact) <= 1e-13 * exact
    assert of_large == pytest.approx(size * 1e60, rel=1e-6)


def test_the_compiled_sum_equals_plain_python() -> None:
    """The order of additions is fixed, so Numba adds up the same bits."""
    # Arrange
    g = np.random.default_rng(2).standard_normal(1003).astype(np.float32)
    runs = [[0, 500, 3], [500, 1000, 503]]

    # Act / Assert
    assert squares(g, runs).tobytes() == squares(g, runs, compiled=False).tobytes()


# Is it finite?

FORMATS: dict[str, tuple[Any, int, list[int]]] = {  # name: signed dtype, infinity, bad patterns
    "float16": (np.int16, 0x7C00, [0x7C00, 0x7C01, 0x7E00, 0x7FFF]),
    "bfloat16": (np.int16, 0x7F80, [0x7F80, 0x7F81, 0x7FC0, 0x7FFF]),
    "float32": (np.int32, 0x7F800000, [0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]),
    "float64": (
        np.int64,
        0x7FF << 52,
        [0x7FF << 52, (0x7FF << 52) + 1, 0x7FF8 << 48, (1 << 63) - 1],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("is_negative", [False, True])
def test_a_bad_element_is_found_wherever_it_is(name: str, is_negative: bool) -> None:
    """Infinity and NaN of all kinds, at the edges of blocks and of the array."""
    # Arrange
    dtype, infinity, patterns = FORMATS[name]
    size = 2 * BLOCK_ELEMENTS + 5
    edges = [0, 1, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, 2 * BLOCK_ELEMENTS - 1, size - 6, size - 1]
    bits = np.full(size, infinity - 1, dtype)  # the largest finite number
    magnitude, limit = dtype(np.iinfo(dtype).max), dtype(infinity)
    kernel = finite_kernel()
    sign = np.iinfo(dtype).min if is_negative else 0

    # Act
    is_finite = kernel(bits, magnitude, limit)
    found = []
    for place in edges:
        for pattern in patterns:
            bits[place] = dtype(pattern) | dtype(sign)
            found.append(not kernel(bits, magnitude, limit))
        bits[place] = dtype(infinity - 1) | dtype(sign)

    # Assert
    assert is_finite
    assert all(found)
    assert kernel(bits, magnitude, limit)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_pattern_is_judged_rightly(name: str) -> None:
    """All 65,536 patterns, one by one."""
    # Arrange
    dtype, infinity, _ = FORMATS[name]
    every = np.arange(1 << 16, dtype=np.uint16)
    is_bad = (every & infinity) == infinity
    kernel = finite_kernel()

    # Act
    judged = [
        not kernel(every[i : i + 1].view(dtype), dtype(0x7FFF), dtype(infinity))
        for i in range(0, 1 << 16, 5)
    ]

    # Assert
    assert judged == is_bad[::5].tolist()


def test_nothing_is_finite() -> None:
    """An empty gradient has no bad element, compiled or not."""
    # Arrange
    nothing = np.empty(0, np.int32)

    # Act
    judged = [
        finite_kernel(compiled=compiled)(nothing, np.int32(2**31 - 1), np.int32(0x7F800000))
        for compiled in (True, False)
    ]

    # Assert
    assert judged == [True, True]


# Weighted sums


@settings(max_examples=20)
@given(weights=st.lists(st.floats(0.125, 8, width=32), min_size=1, max_size=4))
def test_a_weighted_sum_goes_from_left_to_right(weights: list[float]) -> None:
    """`weight * g` for the first, `total + weight * g` for the others, in float32."""
    # Arrange
    rng = np.random.default_rng(3)
    gradients = [rng.standard_normal(50).astype(np.float32) for _ in weights]
    total, runs = np.empty(50, np.float32), np.array([[0, 50, 0]])

    # Act
    for position, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
        kernel = aggregate_kernel(Stages(), is_first=position == 0)
        kernel(gradient, total, runs, ONES, np.float32(weight))

    # Assert
    expected = np.float32(weights[0]) * gradients[0]
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        expected = expected + np.float32(weight) * gradient
    assert total.tobytes() == expected.tobytes()
