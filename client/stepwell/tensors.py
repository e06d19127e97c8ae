"""Named arrays as they travel: what NumPy can view, in C order, and never copied without need."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from stepwell_core.errors import DtypeMismatch, InvalidArgument, ShapeMismatch, shown
from stepwell_core.layout import PAYLOAD_DTYPES, Array, Layout, Tensor, byte_view

HALF_DTYPES = ("float16", "bfloat16")

_GRADIENT_DTYPES = frozenset(PAYLOAD_DTYPES) - {"native"}


def arrays_of(values: Mapping[str, Any], *, skips_none: bool = False) -> dict[str, Array]:
    """Return the arrays in a mapping.

    Args:
        values: By name: arrays, torch tensors, or anything that NumPy can view as one. An array
            in C order and of this machine's byte order is not copied.
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


def gradients_of(
    gradients: Mapping[str, Any], declared: str | None = None
) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arrays of gradients and the name of the dtype of each; None is left out.

    Args:
        gradients: By name; see `arrays_of`.
        declared: What arrays of uint16 or int16 hold the bits of: "bfloat16" or "float16".

    Raises:
        InvalidArgument: They are not a mapping.
        DtypeMismatch: An array is neither of the declared dtype nor of 16 bits.
    """
    if declared is not None and declared not in HALF_DTYPES:
        raise InvalidArgument(
            f"`dtype` says what arrays of uint16 hold: {' or '.join(HALF_DTYPES)}. Received: "
            f"{shown(declared)}"
        )
    arrays = arrays_of(gradients, skips_none=True)
    dtypes = {name: _dtype_of(gradients[name], array) for name, array in arrays.items()}
    if declared is not None:
        dtypes = {name: _as_declared(name, dtype, declared) for name, dtype in dtypes.items()}
    return arrays, dtypes


def _dtype_of(value: Any, array: Array) -> str:
    # Without ml_dtypes, NumPy has no bfloat16, and `array` is the bits.
    return "bfloat16" if _is_bfloat16_of_torch(value) else _name_of(array.dtype)


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.name  # NumPy makes it anew each time, in microseconds


def _as_declared(name: str, dtype: str, declared: str) -> str:
    if dtype not in (declared, "uint16", "int16"):
        raise DtypeMismatch(
            f"With dtype={declared!r} gradients are {declared}, or its bits as uint16. Received: "
            f"{dtype} for {name!r}; convert it, or leave `dtype` out",
            tensor=name,
            expected=declared,
            received=dtype,
        )
    return declared


def _as_array(value: Any) -> Array:
    array = _of_torch(value) if _is_of_torch(value) else np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _is_of_torch(value: Any) -> bool:
    """Whether a value is a torch tensor, which is told without importing torch."""
    is_array = isinstance(value, np.ndarray)
    return not is_array and hasattr(value, "detach") and hasattr(value, "cpu")


def _is_bfloat16_of_torch(value: Any) -> bool:
    return _is_of_torch(value) and str(value.dtype) == "torch.bfloat16"


def _of_torch(tensor: Any) -> Array:
    """Return a tensor as NumPy sees it: without its graph, on the CPU; bfloat16 as its bits.

    Raises:
        InvalidArgument: It is one that NumPy cannot view, such as a sparse one.
    """
    plain = tensor.detach().cpu()
    try:
        if not _is_bfloat16_of_torch(plain):
            return np.asarray(plain.numpy())
        bits = plain.view(sys.modules["torch"].int16)  # it is loaded, or there were no tensor
        return np.asarray(bits.numpy()).view(np.uint16)
    except (TypeError, RuntimeError) as error:
        raise InvalidArgument(
            "A tensor is dense, as tensor.to_dense() makes it, so that NumPy can view it. "
            f"Received: {plain.layout}, {plain.dtype} ({error})"
        ) from None


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
