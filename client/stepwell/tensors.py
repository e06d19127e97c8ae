"""Named arrays as they travel: what NumPy can view, in C order, and never copied without need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell_core.errors import DtypeMismatch, InvalidArgument, ShapeMismatch, shown
from stepwell_core.layout import (
    ARENA_DTYPES,
    PAYLOAD_DTYPES,
    Array,
    Layout,
    Tensor,
    byte_view,
)

from stepwell.arrays import BITS, as_array

HALF_DTYPES = ("float16", "bfloat16")

_GRADIENT_DTYPES = frozenset(PAYLOAD_DTYPES) - {"native"}


def arrays_of(values: Mapping[str, Any]) -> dict[str, Array]:
    """Return the parameters in a mapping as arrays.

    Args:
        values: By name, each float32 or float64; whatever `stepwell.arrays` can view. An array in C
            order and of this machine's byte order is not copied.

    Raises:
        InvalidArgument: It is not a mapping, or a value cannot be viewed.
        DtypeMismatch: A value is of another dtype.
    """
    _check_named(values)
    arrays = {}
    for name, value in values.items():
        arrays[name], dtype = as_array(name, value)
        if dtype not in ARENA_DTYPES:
            raise DtypeMismatch(
                f"Parameters are {' or '.join(ARENA_DTYPES)}. Received: {dtype} for {name!r}; "
                "convert it to float32, in which the optimizer works, and pull with "
                "dtype='bfloat16' if you need that",
                tensor=name,
                received=dtype,
            )
    return arrays


def gradients_of(
    gradients: Mapping[str, Any], declared: str | None = None
) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arrays of gradients and the name of the dtype of each; None is left out.

    Args:
        gradients: By name; whatever `stepwell.arrays` can view.
        declared: What arrays of uint16 or int16 hold the bits of: "bfloat16" or "float16".

    Raises:
        InvalidArgument: They are not a mapping, or one cannot be viewed.
        DtypeMismatch: One is no float, or neither of the declared dtype nor of 16 bits.
    """
    if declared is not None and declared not in HALF_DTYPES:
        raise InvalidArgument(
            f"`dtype` says what arrays of uint16 hold: {' or '.join(HALF_DTYPES)}. Received: "
            f"{shown(declared)}"
        )
    _check_named(gradients)
    arrays, dtypes = {}, {}
    for name, value in gradients.items():
        if value is None:
            continue
        arrays[name], dtype = as_array(name, value)
        dtypes[name] = dtype if declared is None else _as_declared(name, dtype, declared)
    return arrays, dtypes


def _check_named(values: Any) -> None:
    if not isinstance(values, Mapping):
        raise InvalidArgument(
            f"Tensors come by name, as in {{'kernel': array}}. Received: {type(values).__name__}"
        )


def _as_declared(name: str, dtype: str, declared: str) -> str:
    if dtype not in (declared, *BITS):
        raise DtypeMismatch(
            f"With dtype={declared!r} gradients are {declared}, or its bits as uint16. Received: "
            f"{dtype} for {name!r}; convert it, or leave `dtype` out",
            tensor=name,
            expected=declared,
            received=dtype,
        )
    return declared


def in_travel_order(layout: Layout, arrays: Mapping[str, Array]) -> tuple[memoryview, ...]:
    """Return the bytes of each tensor in the order in which they travel; no copy."""
    return tuple(byte_view(arrays[name]) for name in layout.segments)


def check_shape(array: Array, tensor: Tensor, what: str = "gradient") -> None:
    """Raise unless a gradient, or `what` an array is, has the shape of its parameter."""
    if array.shape != tensor.shape:
        raise ShapeMismatch(
            f"The {what} of {tensor.name!r} has its parameter's shape {tensor.shape}. Received: "
            f"{array.shape}",
            tensor=tensor.name,
            expected=list(tensor.shape),
            received=list(array.shape),
        )


def common_dtype(received: Mapping[str, str], selection: Layout) -> str:
    """Return the payload's dtype: "native" if each array has its parameter's, or the one of all.

    Args:
        received: Dtype of each tensor's gradient.
        selection: The tensors.

    Raises:
        DtypeMismatch: There are several, or one that no gradient can have.
    """
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
