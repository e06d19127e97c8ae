"""A gradient as it travels: its bits, and whether it is finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stepwell_core.gradient import Gradient
from stepwell_core.layout import Layout, Tensor

MIXED = Layout(
    [
        Tensor("kernel", (3,), "float32"),
        Tensor("wide", (2,), "float64"),
        Tensor("nothing", (0,), "float32"),
    ]
)
BAD = [np.nan, np.inf, -np.inf]


def gradient_of(dtype: str = "native") -> Gradient:
    """Return a gradient of ones."""
    payload = MIXED.new_payload(dtype)
    for array in payload.values():
        array[...] = 0x3F80 if dtype == "bfloat16" else 1  # bfloat16 is held as its bits
    return Gradient(MIXED, payload, dtype)


@pytest.mark.parametrize("dtype", ["native", "float16", "bfloat16", "float32", "float64"])
def test_kernels_get_bits_and_a_format(dtype: str) -> None:
    """Half-width formats come as uint16, the others as they are; nothing is copied."""
    # Arrange
    gradient = gradient_of(dtype)

    # Act
    (narrow, narrow_format), (wide, wide_format) = (gradient.bits(d) for d in MIXED.sizes)

    # Assert
    expected = ("float32", "float64") if dtype == "native" else (dtype, dtype)
    assert (narrow_format, wide_format) == expected
    assert all(bits.dtype == np.uint16 or bits.itemsize > 2 for bits in (narrow, wide))
    assert np.shares_memory(narrow, gradient.arenas["float32"])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("arena", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["native", "float16", "bfloat16", "float32", "float64"])
def test_one_bad_element_is_seen_in_every_format(dtype: str, arena: str, bad: float) -> None:
    """NaN and infinity of both signs, in either arena."""
    # Arrange
    gradient = gradient_of(dtype)
    bits = {np.inf: 0x7F80, -np.inf: 0xFF80}.get(bad, 0x7FC1)

    # Act
    before = gradient.is_finite()
    gradient.arenas[arena][-1] = bits if dtype == "bfloat16" else bad

    # Assert
    assert before
    assert not gradient.is_finite()


LARGEST = float(np.finfo(np.float32).max)
HALF_A_UNIT_MORE = LARGEST + 2.0**103


@pytest.mark.parametrize(
    ("number", "fits"),
    [
        (LARGEST, True),
        (np.nextafter(HALF_A_UNIT_MORE, 0), True),
        (HALF_A_UNIT_MORE, False),
        (1e39, False),
        (1e300, False),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_becomes_infinite_by_rounding_is_not_finite(
    number: Any, fits: bool, sign: int
) -> None:
    """A float64 payload for a float32 parameter is judged as the step will see it."""
    # Arrange
    gradient = gradient_of("float64")

    # Act
    gradient.arenas["float32"][1] = sign * number

    # Assert
    with np.errstate(over="ignore"):
        assert np.isfinite(np.float32(sign * number)) == fits
    assert gradient.is_finite() is fits


def test_a_large_float64_is_finite_where_the_parameter_is_float64() -> None:
    """The limit is that of the parameter, not of the format."""
    # Arrange
    gradient = gradient_of("float64")

    # Act
    gradient.arenas["float64"][0] = 1e300

    # Assert
    assert gradient.is_finite()


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    """In the order of the layout, whatever the elements are."""
    layout = Layout([Tensor("a", (2,), "float32"), Tensor("b", (3,), "float32")])
    values = np.ones(5, np.float32)
    gradient = Gradient(layout, {"float32": values})

    finite = gradient.first_nonfinite()
    values[4] = np.inf

    assert (finite, gradient.first_nonfinite()) == (None, "b")
    values[0] = np.nan
    assert gradient.first_nonfinite() == "a"
