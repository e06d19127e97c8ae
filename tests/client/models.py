"""A small model for tests, gradients for it, and how to compare two."""

from __future__ import annotations

import numpy as np

PARAMETERS = {
    "dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "dense/bias": np.full(3, 0.5, np.float32),
    "scale": np.float32(2),
}
ONES = {name: np.ones_like(array) for name, array in PARAMETERS.items()}


def gradients_of(parameters, seed):
    """Return drawn gradients in the parameters' shapes and dtypes."""
    random = np.random.default_rng(seed)
    return {
        name: random.normal(size=array.shape).astype(array.dtype)
        for name, array in parameters.items()
    }


def assert_same(received, expected):
    """Compare two models to the bit."""
    assert list(received) == list(expected)
    for name, array in expected.items():
        assert received[name].dtype == array.dtype
        assert received[name].shape == array.shape
        assert received[name].tobytes() == np.asarray(array).tobytes(), name
