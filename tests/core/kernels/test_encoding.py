"""Encoding to half width: NumPy and ml_dtypes say what is right, bit by bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core.kernels import encode_kernel

FORMATS: dict[str, Any] = {"float16": np.dtype(np.float16), "bfloat16": np.dtype("bfloat16")}
DTYPES = {"float32": np.uint32, "float64": np.uint64}
EVERY_PATTERN = np.arange(1 << 16, dtype=np.uint16)

pairs = pytest.mark.parametrize(
    ("payload", "dtype"), [(payload, dtype) for payload in FORMATS for dtype in DTYPES]
)


def encoded(numbers: np.ndarray, payload: str, *, compiled: bool = True) -> np.ndarray:
    """Return what the kernel makes of parameters."""
    out = np.zeros(numbers.size, np.uint16)
    with np.errstate(all="ignore"):
        kernel = encode_kernel(payload, numbers.dtype.name, compiled=compiled)
        kernel(numbers, out, np.array([[0, numbers.size, 0]]))
    return out


def assert_as_astype(numbers: np.ndarray, payload: str) -> None:
    """Compare every bit with the library's own; a NaN is quiet, and keeps its sign alone."""
    with np.errstate(all="ignore"):
        expected = numbers.astype(FORMATS[payload]).view(np.uint16)
    actual, is_nan = encoded(numbers, payload), np.isnan(numbers)
    np.testing.assert_array_equal(actual[~is_nan], expected[~is_nan])
    quiet = np.uint16({"float16": 0x7E00, "bfloat16": 0x7FC0}[payload])
    sign = np.signbit(numbers[is_nan]).astype(np.uint16) << 15
    np.testing.assert_array_equal(actual[is_nan], sign | quiet)


def values_of(payload: str, dtype: str) -> np.ndarray:
    """Return the value of every pattern."""
    with np.errstate(invalid="ignore"):
        return EVERY_PATTERN.view(FORMATS[payload]).astype(np.float32).astype(dtype)


def and_neighbours(numbers: np.ndarray) -> np.ndarray:
    """Return numbers with the next larger and the next smaller ones."""
    with np.errstate(all="ignore"):
        infinity = numbers.dtype.type(np.inf)
        return np.concatenate(
            [numbers, np.nextafter(numbers, infinity), np.nextafter(numbers, -infinity)]
        )


@pairs
def test_every_value_and_every_midpoint_is_rounded_as_by_the_library(payload, dtype):
    """65,536 values and what lies half way to the next, with their neighbours on both sides."""
    values = values_of(payload, dtype)
    with np.errstate(all="ignore"):
        midpoints = values + (np.roll(values, -1) - values) / 2

    assert_as_astype(and_neighbours(values), payload)
    assert_as_astype(and_neighbours(midpoints), payload)


@pairs
def test_what_decodes_to_a_value_is_that_value_again(payload, dtype):
    """A pull in half width of parameters that came so loses nothing."""
    numbers = values_of(payload, dtype)

    actual = encoded(numbers, payload)

    is_number = ~np.isnan(numbers)
    np.testing.assert_array_equal(actual[is_number], EVERY_PATTERN[is_number])


@pairs
def test_the_edges_of_the_wide_format_are_rounded_as_by_the_library(payload, dtype):
    """Largest, smallest, subnormal, zeros of both signs, infinities, NaN of both kinds."""
    info = np.finfo(dtype)
    edges = [0.0, info.tiny, info.smallest_subnormal, info.max, np.inf, np.nan, 65504, 65520, 1.0]
    numbers = and_neighbours(np.array(edges, dtype))
    signaling = np.array([np.inf], dtype).view(DTYPES[dtype]) + DTYPES[dtype](1)

    assert_as_astype(np.concatenate([numbers, -numbers]), payload)
    assert_as_astype(signaling.view(dtype), payload)


@given(bits=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=200))
@pytest.mark.parametrize("payload", FORMATS)
def test_any_float32_is_rounded_as_by_the_library(payload, bits):
    """Whatever its bits."""
    assert_as_astype(np.array(bits, np.uint32).view(np.float32), payload)


@given(bits=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=200))
@pytest.mark.parametrize("payload", FORMATS)
def test_any_float64_is_rounded_as_by_the_library(payload, bits):
    """Whatever its bits."""
    assert_as_astype(np.array(bits, np.uint64).view(np.float64), payload)


@given(
    pattern=st.integers(0, (1 << 16) - 1),
    tail=st.integers(-(1 << 12), 1 << 12),
    is_half=st.booleans(),
)
@pytest.mark.parametrize("payload", FORMATS)
def test_any_float64_near_a_boundary_is_rounded_as_by_the_library(payload, pattern, tail, is_half):
    """Where one unit of float64 decides: at the values and half way between two."""
    value = np.array([pattern], np.uint16).view(FORMATS[payload]).astype(np.float64)
    with np.errstate(all="ignore"):
        following = np.array([(pattern + 1) & 0xFFFF], np.uint16).view(FORMATS[payload])
        middle = value + (following.astype(np.float64) - value) / 2 if is_half else value
        near = (middle.view(np.int64) + tail).view(np.float64)

    assert_as_astype(near, payload)


@pairs
def test_plain_python_encodes_alike(payload, dtype):
    """The function that is compiled gives the same as Python, at numbers of all kinds."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, np.iinfo(DTYPES[dtype]).max, 500, DTYPES[dtype], endpoint=True)
    small = rng.standard_normal(500) * 10.0 ** rng.integers(-9, 6, 500)
    numbers = np.concatenate([bits.view(dtype), small.astype(dtype)])

    plain = encoded(numbers, payload, compiled=False)

    np.testing.assert_array_equal(plain, encoded(numbers, payload))


def test_runs_say_where_elements_come_from_and_go_to():
    """A selection is written end to end."""
    out = np.zeros(4, np.uint16)
    numbers = np.arange(10, dtype=np.float32)

    encode_kernel("float16", "float32")(numbers, out, np.array([[1, 2, 0], [5, 8, 1]]))

    assert out.view(np.float16).tolist() == [1, 5, 6, 7]


def test_ml_dtypes_is_what_the_formats_are_compared_with():
    """`np.dtype("bfloat16")` is its, once it is imported."""
    assert FORMATS["bfloat16"] == ml_dtypes.bfloat16
