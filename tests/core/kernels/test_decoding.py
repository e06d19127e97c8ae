"""Decoding: every bit pattern of the half-width formats, and the cast between the wide ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stepwell_core.kernels import LOSS_SCALE, Stages, accumulate_kernel
from stepwell_core.kernels.decoding import DECODE
from stepwell_core.kernels.stages import CONSTANTS

EVERY_PATTERN = np.arange(1 << 16, dtype=np.uint16)


def decoded(bits: np.ndarray, payload: str, dtype: Any, *, compiled: bool) -> np.ndarray:
    """Return what a kernel makes of a payload: `decode(x) + 0`, which keeps all but -0."""
    accumulator = np.full(bits.size, -0.0, dtype)
    runs = np.array([[0, bits.size, 0]])
    with np.errstate(all="ignore"):
        kernel = accumulate_kernel(Stages(payload=payload), compiled=compiled)
        kernel(bits, accumulator, runs, np.ones(CONSTANTS, dtype))
    return accumulator


def values_of(payload: str) -> np.ndarray:
    """Return the value of every pattern, as float32, made without Stepwell."""
    if payload == "float16":
        return EVERY_PATTERN.view(np.float16).astype(np.float32)
    return (EVERY_PATTERN.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("payload", ["float16", "bfloat16"])
def test_every_bit_pattern_decodes_to_its_value(payload: str, dtype: Any) -> None:
    """65,536 patterns: zeros of both signs, subnormals, infinities; NaN stays NaN."""
    # Arrange
    with np.errstate(invalid="ignore"):  # signaling NaN become quiet
        expected = values_of(payload).astype(dtype)

    # Act
    actual = decoded(EVERY_PATTERN, payload, dtype, compiled=True)

    # Assert
    is_nan = np.isnan(expected)
    assert actual.dtype == expected.dtype
    assert np.array_equal(np.isnan(actual), is_nan)
    assert actual[~is_nan].tobytes() == expected[~is_nan].tobytes()


@pytest.mark.parametrize("payload", ["float16", "bfloat16"])
def test_plain_python_decodes_alike(payload: str) -> None:
    """The function that is compiled gives the same as Python, at patterns of all kinds."""
    # Arrange
    edges = [0, 1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7C01, 0x7F7F, 0x7F80, 0x7FFF, 0x8000, 0xFBFF]
    bits = np.concatenate([EVERY_PATTERN[::7], np.array(edges, np.uint16)])
    expected = values_of(payload)[bits]

    # Act
    with np.errstate(all="ignore"):
        actual = np.array([DECODE[payload](x, np.float32(1)) for x in bits])

    # Assert
    assert actual.dtype == np.float32
    assert np.array_equal(actual, expected, equal_nan=True)
    assert np.array_equal(np.signbit(actual), np.signbit(expected))


def test_bfloat16_is_what_ml_dtypes_says() -> None:
    """The format that JAX and torch send."""
    # Arrange
    ml_dtypes = pytest.importorskip("ml_dtypes")

    # Act
    theirs = EVERY_PATTERN.view(ml_dtypes.bfloat16).astype(np.float32)

    # Assert
    assert np.array_equal(theirs, values_of("bfloat16"), equal_nan=True)


@pytest.mark.parametrize(
    ("payload", "dtype"), [("float32", np.float64), ("float64", np.float32), ("float64", "f8")]
)
def test_wide_formats_are_rounded_once(payload: str, dtype: Any) -> None:
    """float64 becomes float32 by rounding to nearest, as NumPy does it, and nothing else."""
    # Arrange
    rng = np.random.default_rng(0)
    magnitudes = 10.0 ** rng.integers(-50, 45, 1000)
    with np.errstate(all="ignore"):
        numbers = (rng.standard_normal(1000) * magnitudes).astype(payload)
        expected = numbers.astype(dtype)

    # Act
    actual = decoded(numbers, payload, dtype, compiled=True)

    # Assert
    assert actual.tobytes() == expected.tobytes()


def test_the_loss_scale_is_taken_out_after_decoding() -> None:
    """Dividing comes in the parameter's dtype: in float16 a small gradient would be lost."""
    # Arrange
    bits = np.array([2.0**-20], np.float16).view(np.uint16)
    constants = np.ones(CONSTANTS, np.float32)
    constants[LOSS_SCALE] = 2.0**15
    accumulator = np.zeros(1, np.float32)

    # Act
    kernel = accumulate_kernel(Stages(payload="float16", unscales=True), compiled=False)
    kernel(bits, accumulator, np.array([[0, 1, 0]]), constants)

    # Assert
    assert accumulator[0] == 2.0**-35
