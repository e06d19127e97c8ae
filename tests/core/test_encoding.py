"""Parameters in half width: all or some, of both dtypes, compiled before they are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from stepwell_core.encoding import HALF_DTYPES, encode, rehearse_encoding
from stepwell_core.layout import Layout, Tensor

LAYOUT = Layout(
    [
        Tensor("a", (2,), "float32"),
        Tensor("b", (3,), "float64"),
        Tensor("c", (0,), "float32"),
        Tensor("d", (2, 2), "float32"),
    ]
)


def arenas() -> dict[str, np.ndarray]:
    """Return numbers that half width holds."""
    return {"float32": np.arange(6, dtype="f4") - 2, "float64": np.arange(3, dtype="f8") / 4}


@pytest.mark.parametrize("names", [None, ["a"], ["b"], ["d"], ["d", "b"], ["c"], ["a", "c", "d"]])
def test_some_tensors_are_encoded_as_all_are(names: list[str] | None) -> None:
    """In layout order, one arena for each dtype of the parameters."""
    selection = LAYOUT if names is None else LAYOUT.select(names)
    views = LAYOUT.views(arenas())

    payload = encode(LAYOUT, arenas(), selection, "float16")

    assert {d: array.size for d, array in payload.items()} == selection.sizes
    found = {
        name: payload[s.tensor.dtype][s.start : s.stop].reshape(s.tensor.shape)
        for name, s in selection.segments.items()
    }
    for name, array in found.items():
        assert array.dtype == np.float16
        np.testing.assert_array_equal(array, views[name])


def test_bfloat16_comes_as_its_bits() -> None:
    """NumPy has no such dtype: the upper half of a float32."""
    payload = encode(LAYOUT, arenas(), LAYOUT, "bfloat16")

    assert payload["float32"].dtype == np.uint16
    widened = (payload["float32"].astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(widened, arenas()["float32"])


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_after_a_rehearsal_nothing_is_compiled(dtype: str, monkeypatch: Any) -> None:
    """The version is held while it is encoded, and not for as long as a compiler takes."""
    rehearse_encoding(LAYOUT, dtype)

    def refuse(self: Any, signature: Any) -> None:
        raise AssertionError(f"{self.__qualname__} {signature} was compiled")

    monkeypatch.setattr(Dispatcher, "compile", refuse)
    encode(LAYOUT, arenas(), LAYOUT, dtype)
