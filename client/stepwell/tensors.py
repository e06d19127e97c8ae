"""Named arrays as they travel: what NumPy can view, in C order, and never copied without need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from stepwell_core.errors import DtypeMismatch, InvalidArgument, ShapeMismatch
from stepwell_core.layout import PAYLOAD_DTYPES, Array, Layout, Tensor, byte_views

_GRADIENT_DTYPES = frozenset(PAYLOAD_DTYPES) - {"native"}


def arrays_of(values: Mapping[str, Any], *, skips_none: bool = False) -> dict[str, Array]:
    """Return the arrays in a mapping.

    Args:
        values: By name: arrays, or anything that NumPy can view as one. An array in C order and of
            this machine's byte order is not copied.
        skips_none: Whether values that are None are left out.

    Raises:
        InvalidArgument: It is not a mapping.
    """
    if not isinstance(values, Mapping):
        raise InvalidArgument(
            f"Tensors come by name, as in {{'kernel': array}}. Received: {type(values).__name__}"
        )
    return {
        name: _as_array(value)
        for name, value in values.items()
        if not (skips_none and value is None)
    }


def _as_array(value: Any) -> Array:
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def in_travel_order(layout: Layout, arrays: Mapping[str, Array]) -> tuple[memoryview, ...]:
    """Return the bytes of each tensor in the order in which they travel; no copy."""
    return tuple(
        view
        for segment in layout.segments.values()
        for view in byte_views({segment.tensor.dtype: arrays[segment.tensor.name].reshape(-1)})
    )


def check_shape(array: Array, tensor: Tensor) -> None:
    """Raise unless a gradient has the shape of its parameter."""
    if array.shape != tensor.shape:
        raise ShapeMismatch(
            f"The gradient of {tensor.name!r} has its parameter's shape {tensor.shape}. Received: "
            f"{array.shape}",
            tensor=tensor.name,
            expected=list(tensor.shape),
            received=list(array.shape),
        )


def common_dtype(arrays: Mapping[str, Array], selection: Layout) -> str:
    """Return the payload's dtype: "native" if each array has its parameter's, or the one of all.

    Raises:
        DtypeMismatch: The arrays have several, or one that no gradient can have.
    """
    received = {tensor.name: arrays[tensor.name].dtype.name for tensor in selection}
    wrong = [tensor for tensor in selection if received[tensor.name] != tensor.dtype]
    if not wrong:
        return "native"
    found = set(received.values())
    if len(found) == 1 and found <= _GRADIENT_DTYPES:
        return found.pop()
    name, dtype = wrong[0].name, wrong[0].dtype
    raise DtypeMismatch(
        "Gradients have their parameters' dtypes, or all of them one of "
        f"{', '.join(sorted(_GRADIENT_DTYPES))}. Received: {received[name]} for {name!r}, which is "
        f"{dtype}",
        tensor=name,
        expected=dtype,
        received=received[name],
    )
