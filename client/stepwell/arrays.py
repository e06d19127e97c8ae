"""One value of a user as a NumPy array: what other libraries call an array, without a copy.

None of those libraries is imported: a value is known by what it has. A copy is made of what lies on
another device, is not in C order, or has another machine's byte order; all else is viewed.

- NumPy, `ml_dtypes`, JAX, `__array__`, `__array_interface__`, buffers, lists: `numpy.asarray`
- a torch tensor: detached, moved to the CPU; bfloat16 as its bits, since NumPy has no such dtype
- a Keras variable: its value, as one of the others
- what has only `__dlpack__`: `numpy.from_dlpack`, if it lies in the CPU's memory
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import numpy as np
from stepwell_core.errors import DtypeMismatch, InvalidArgument
from stepwell_core.layout import Array

FLOATS = ("float32", "float64", "float16", "bfloat16")
"""The dtypes that travel; parameters are of the first two alone."""

BITS = ("uint16", "int16")
"""What may hold the bits of a float of half width, if the caller says so."""

_CPU = 1  # kDLCPU, of dlpack.h

# What each kind of dtype is converted by; kinds are NumPy's one letter.
_NEXT_STEPS = {
    "i": "convert it to float32: array.astype('float32')",
    "u": "convert it to float32: array.astype('float32')",
    "b": "convert it to float32: array.astype('float32')",
    "c": "give its real and imaginary parts as two tensors",
    "O": "give an array of numbers; a list has rows of one length",
}


def as_array(name: object, value: Any) -> tuple[Array, str]:
    """Return a value as an array in C order and of this machine's byte order, and its dtype's name.

    Args:
        name: Of the tensor, for errors.
        value: See the module. It must not change while the array is in use.

    Returns:
        An array that shares the value's memory if it can. With "bfloat16" of torch, it is uint16.

    Raises:
        DtypeMismatch: It holds something that is no float of 16, 32 or 64 bits, nor such bits.
        InvalidArgument: It cannot be viewed: sparse, ragged, on another device, traced, masked.
    """
    if isinstance(value, np.ndarray):
        array, dtype = value, _name_of(value.dtype)
    elif is_of_torch(value):
        array, dtype = _of_torch(name, value)
    else:
        array = _viewed(name, value)
        dtype = _name_of(array.dtype)
    if dtype not in FLOATS and dtype not in BITS:
        raise _no_float(name, array)
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidArgument(
            f"A tensor has a number in each place. Received: a masked array for {name!r}; fill it: "
            "array.filled(0)",
            tensor=name,
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return (array if array.flags.c_contiguous else np.ascontiguousarray(array)), dtype


def is_of_torch(value: Any) -> bool:
    """Return whether a value is a torch tensor, which is told without importing torch."""
    return hasattr(value, "detach") and hasattr(value, "cpu") and hasattr(value, "layout")


@cache
def _name_of(dtype: np.dtype[Any]) -> str:
    return dtype.name  # NumPy makes it anew each time, in microseconds


def _viewed(name: object, value: Any) -> Array:
    """Return what NumPy sees in a value of a library that is not torch."""
    if value is None:
        raise DtypeMismatch(
            f"A parameter is an array. Received: None for {name!r}; leave it out, or give its "
            "values",
            tensor=name,
        )
    if _is_of_keras(value):
        return as_array(name, value.value)[0]
    if hasattr(value, "todense"):
        raise InvalidArgument(
            f"A tensor is dense. Received: a sparse {type(value).__name__} for {name!r}; make it "
            "dense first: value.todense()",
            tensor=name,
        )
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return _of_dlpack(value)
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InvalidArgument(
            "A tensor is something that NumPy can view: dense, with rows of one length, in the "
            f"CPU's memory, and not inside a traced function. Received: {type(value).__name__} for "
            f"{name!r} ({_first_line(error)})",
            tensor=name,
        ) from None


def _is_of_keras(value: Any) -> bool:
    return hasattr(value, "value") and any(
        cls.__module__.startswith("keras.") for cls in type(value).__mro__
    )


def _of_dlpack(value: Any) -> Array:
    device = value.__dlpack_device__()[0]
    if device != _CPU:
        raise BufferError(f"it lies on device type {int(device)} of DLPack; copy it to the CPU")
    return np.from_dlpack(value)


def _of_torch(name: object, tensor: Any) -> tuple[Array, str]:
    """Return a tensor as NumPy sees it: without its graph, on the CPU; bfloat16 as its bits."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if str(tensor.layout) != "torch.strided":
        raise InvalidArgument(
            f"A tensor is dense. Received: {tensor.layout} for {name!r}; make it dense first: "
            "tensor.to_dense()",
            tensor=name,
        )
    try:
        plain = tensor.detach().cpu()
        if dtype == "bfloat16":
            plain = plain.view(sys.modules["torch"].int16)  # loaded, or there were no tensor
            return np.asarray(plain.numpy()).view(np.uint16), dtype
        return np.asarray(plain.numpy()), dtype
    except (
        TypeError,
        RuntimeError,
    ) as error:  # NotImplementedError, of meta tensors, is the latter
        raise InvalidArgument(
            f"A tensor is one that NumPy can view. Received: torch.{dtype} for {name!r} "
            f"({_first_line(error)}); convert it first: tensor.float()",
            tensor=name,
        ) from None


def _no_float(name: object, array: Array) -> DtypeMismatch:
    dtype = array.dtype
    next_step = _NEXT_STEPS.get(dtype.kind, "convert it to float32")
    if dtype.kind in "SU":
        next_step = "text is no tensor; encode it as numbers"
    return DtypeMismatch(
        f"Tensors hold floats: {', '.join(FLOATS[:2])}, or as gradients {' or '.join(FLOATS[2:])}. "
        f"Received: {dtype.name} for {name!r}; {next_step}",
        tensor=name,
        received=dtype.name,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
