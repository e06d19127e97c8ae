"""Where each tensor of a model lies: ordered names, shapes and dtypes, end to end in flat arenas.

All float32 tensors of a model lie in one array and all float64 tensors in another: the *arenas*.
Every slot (momentum, velocity, ...) has arenas of the same layout, and a payload on the wire has
exactly the arenas' bytes, float32 first, so a push goes from the socket into the update without
being rearranged.

A partial push or pull is a *selection*: a layout of its own whose tensors are some of the model's,
in the model's order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from stepwell_core.errors import (
    DtypeMismatch,
    InvalidInput,
    LayoutMismatch,
    ShapeMismatch,
    UnknownTensor,
    shown,
)
from stepwell_core.names import check_tensor_name

Array = npt.NDArray[Any]
Arenas = dict[str, Array]
"""One flat array a dtype; a dtype without tensors has no entry."""

ARENA_DTYPES = ("float32", "float64")
"""The dtypes that parameters are held in, in the order in which they travel."""

MAX_TENSORS = 1 << 16
MAX_DIMENSIONS = 32
MAX_BYTES = 1 << 46


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor of a layout.

    Attributes:
        name: Unique in its layout.
        shape: Sizes, each >= 0; () for a scalar.
        dtype: "float32" or "float64".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """The place of one tensor: elements `start` to `stop` of the arena `dtype`."""

    tensor: Tensor
    start: int
    stop: int

    def view(self, arenas: Mapping[str, Array]) -> Array:
        """Return the tensor in its shape; a view, so it shares the arena's memory and lifetime."""
        return arenas[self.tensor.dtype][self.start : self.stop].reshape(self.tensor.shape)


class Layout:
    """Ordered tensors and their places in the arenas. Immutable; equal when the hashes are equal.

    Args:
        tensors: In the order in which they travel.

    Raises:
        InvalidInput: A name, shape or dtype is not allowed, or a name occurs twice.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = tuple(_checked(tensor) for tensor in tensors)
        if not 0 < len(self.tensors) <= MAX_TENSORS:
            raise InvalidInput(
                f"A model has 1 to {MAX_TENSORS} tensors. Received: {len(self.tensors)}"
            )
        self.sizes: dict[str, int] = {}
        self.segments: dict[str, Segment] = {}
        for dtype in ARENA_DTYPES:
            self._place([tensor for tensor in self.tensors if tensor.dtype == dtype], dtype)
        if self.nbytes > MAX_BYTES:
            raise InvalidInput(f"A model has at most {MAX_BYTES} bytes. Received: {self.nbytes}")

    def _place(self, tensors: Sequence[Tensor], dtype: str) -> None:
        stop = 0
        for tensor in tensors:
            if tensor.name in self.segments:
                raise InvalidInput(f"Each tensor has its own name. Received twice: {tensor.name!r}")
            start, stop = stop, stop + tensor.size
            self.segments[tensor.name] = Segment(tensor, start, stop)
        if tensors:
            self.sizes[dtype] = stop

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Layout:
        """Return the layout of named arrays, in the mapping's order.

        Raises:
            DtypeMismatch: An array is neither float32 nor float64.
        """
        return cls(
            Tensor(name, tuple(array.shape), array.dtype.name) for name, array in arrays.items()
        )

    @classmethod
    def from_json(cls, value: object) -> Layout:
        """Return the layout that `to_json` described; `value` may come from a stranger.

        Raises:
            InvalidInput: `value` is not a list of `{"name", "shape", "dtype"}`.
        """
        if not isinstance(value, list):
            raise InvalidInput(f"Tensors are a list. Received: {type(value).__name__}")
        if len(value) > MAX_TENSORS:
            raise InvalidInput(f"A model has 1 to {MAX_TENSORS} tensors. Received: {len(value)}")
        return cls(_tensor_from_json(entry) for entry in value)

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain values from which `from_json` makes an equal layout."""
        return [
            {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
            for tensor in self.tensors
        ]

    @cached_property
    def hash(self) -> str:
        """32 hexadecimal digits that depend on names, shapes, dtypes and their order alone."""
        rows = [[tensor.name, list(tensor.shape), tensor.dtype] for tensor in self.tensors]
        text = json.dumps(rows, separators=(",", ":"), ensure_ascii=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in order."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Number of elements of all tensors."""
        return sum(self.sizes.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all arenas."""
        return self.payload_nbytes("native")

    def payload_nbytes(self, dtype: str) -> int:
        """Return the exact size of a payload of `dtype`; "native" is each tensor's own."""
        return sum(
            size * payload_itemsize(dtype, arena_dtype) for arena_dtype, size in self.sizes.items()
        )

    def select(self, names: Iterable[str]) -> Layout:
        """Return the layout of the named tensors alone, in this layout's order.

        Raises:
            UnknownTensor: A name is not in this layout.
            InvalidInput: No name was given, or one occurs twice.
        """
        wanted = list(names)
        for name in wanted:
            if not isinstance(name, str) or name not in self.segments:
                raise UnknownTensor(
                    f"The model has no tensor {shown(name)}. It has: {_some(self.names)}",
                    tensor=shown(name),
                )
        if len(set(wanted)) != len(wanted):
            raise InvalidInput("A tensor may be named once. Received a name twice.")
        if len(wanted) == len(self.tensors):
            return self
        chosen = set(wanted)
        return Layout(tensor for tensor in self.tensors if tensor.name in chosen)

    def new_arenas(self, value: float | None = 0.0) -> Arenas:
        """Return new arenas filled with `value`; None leaves them as the allocator gave them."""
        if value is None:
            return {dtype: np.empty(size, dtype) for dtype, size in self.sizes.items()}
        if value == 0.0:
            return {dtype: np.zeros(size, dtype) for dtype, size in self.sizes.items()}
        return {dtype: np.full(size, value, dtype) for dtype, size in self.sizes.items()}

    def new_payload(self, dtype: str = "native") -> Arenas:
        """Return uninitialized arenas for a payload, each aligned to its own element size.

        Args:
            dtype: One of `PAYLOAD_DTYPES`; bfloat16 is held as uint16, NumPy having no such dtype.
        """
        return {
            arena_dtype: np.empty(size, payload_dtype(dtype, arena_dtype))
            for arena_dtype, size in self.sizes.items()
        }

    def flatten(self, arrays: Mapping[str, Array]) -> Arenas:
        """Return new arenas that hold copies of the named arrays.

        Raises:
            LayoutMismatch: Names are missing or unknown.
            ShapeMismatch: An array has another shape than its tensor.
            DtypeMismatch: An array has another dtype than its tensor.
        """
        self.check(arrays)
        arenas = self.new_arenas(None)
        for name, segment in self.segments.items():
            segment.view(arenas)[...] = arrays[name]
        return arenas

    def check(self, arrays: Mapping[str, Array]) -> None:
        """Raise unless `arrays` has exactly the tensors of this layout, in any order."""
        if arrays.keys() != self.segments.keys():
            missing = [name for name in self.names if name not in arrays]
            unknown = [name for name in arrays if name not in self.segments]
            raise LayoutMismatch(
                f"The tensors' names differ from the model's. Missing: {_some(missing)}; unknown: "
                f"{_some(unknown)}",
                missing=missing[:16],
                unknown=unknown[:16],
            )
        for name, segment in self.segments.items():
            check_array(arrays[name], segment.tensor)

    def fits(self, arenas: Mapping[str, Array]) -> bool:
        """Return whether `arenas` have this layout's dtypes and sizes."""
        held = {dtype: (array.dtype.name, array.shape) for dtype, array in arenas.items()}
        return held == {dtype: (dtype, (size,)) for dtype, size in self.sizes.items()}

    def views(self, arenas: Mapping[str, Array]) -> dict[str, Array]:
        """Return each tensor by name, in layout order, as a view into `arenas`."""
        return {name: self.segments[name].view(arenas) for name in self.names}

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self.tensors == other.tensors

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"<Layout of {len(self)} tensors, {self.nbytes} bytes, {self.hash[:8]}>"


def byte_views(arenas: Mapping[str, Array]) -> list[memoryview]:
    """Return the bytes of each arena, in the order in which they travel; views, no copy."""
    return [byte_view(arenas[dtype]) for dtype in ARENA_DTYPES if dtype in arenas]


def byte_view(array: Array) -> memoryview:
    """Return the bytes of an array in C order; a view, no copy."""
    # An array is a buffer; typeshed learns it in 3.12.
    return memoryview(cast(bytes, array.reshape(-1).view(np.uint8)))


PAYLOAD_DTYPES = ("native", "float16", "bfloat16", "float32", "float64")
"""What the elements of a payload may be; "native" means each tensor's own dtype."""

_HELD_AS: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}


def payload_dtype(dtype: str, arena_dtype: str) -> np.dtype[Any]:
    """Return the NumPy dtype in which a payload's elements are held.

    Args:
        dtype: One of `PAYLOAD_DTYPES`.
        arena_dtype: "float32" or "float64", the dtype of the parameters themselves.

    Raises:
        DtypeMismatch: `dtype` is not one of them.
    """
    try:
        return _HELD_AS[arena_dtype if dtype == "native" else dtype]
    except (KeyError, TypeError):
        raise DtypeMismatch(
            f"A payload's dtype is one of {', '.join(PAYLOAD_DTYPES)}. Received: {shown(dtype)}"
        ) from None


def payload_itemsize(dtype: str, arena_dtype: str) -> int:
    """Return the bytes of one element of a payload."""
    return payload_dtype(dtype, arena_dtype).itemsize


def check_array(array: Array, tensor: Tensor) -> None:
    """Raise unless `array` has the shape and dtype of `tensor`."""
    if tuple(array.shape) != tensor.shape:
        raise ShapeMismatch(
            f"Tensor {tensor.name!r} has shape {tensor.shape}. Received: {tuple(array.shape)}",
            tensor=tensor.name,
            expected=list(tensor.shape),
            received=list(array.shape),
        )
    if array.dtype.name != tensor.dtype:
        raise DtypeMismatch(
            f"Tensor {tensor.name!r} has dtype {tensor.dtype}. Received: {array.dtype.name}",
            tensor=tensor.name,
            expected=tensor.dtype,
            received=array.dtype.name,
        )


def _checked(tensor: Tensor) -> Tensor:
    check_tensor_name(tensor.name)
    if tensor.dtype not in ARENA_DTYPES:
        raise DtypeMismatch(
            f"A parameter is float32 or float64. Received: tensor {tensor.name!r} of dtype "
            f"{shown(tensor.dtype)}; convert it before the model is created",
            tensor=tensor.name,
            received=shown(tensor.dtype),
        )
    if len(tensor.shape) > MAX_DIMENSIONS or not all(_is_size(size) for size in tensor.shape):
        raise ShapeMismatch(
            f"A shape has at most {MAX_DIMENSIONS} sizes >= 0. Received: tensor {tensor.name!r} of "
            f"shape {shown(tensor.shape)}",
            tensor=tensor.name,
        )
    if math.prod(size or 1 for size in tensor.shape) > MAX_BYTES:  # NumPy counts empty axes so
        raise ShapeMismatch(
            f"A tensor's sizes, zeros left out, multiply to at most {MAX_BYTES}. Received: tensor "
            f"{tensor.name!r} of shape {shown(tensor.shape)}",
            tensor=tensor.name,
        )
    return tensor


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size < MAX_BYTES


def _tensor_from_json(entry: object) -> Tensor:
    fields = {"name", "shape", "dtype"}
    if not isinstance(entry, dict) or not {"name", "shape"} <= entry.keys() <= fields:
        raise InvalidInput(
            f'A tensor is {{"name": ..., "shape": [...], "dtype": ...}}. Received: {shown(entry)}'
        )
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ShapeMismatch(
            f"A shape is a list of at most {MAX_DIMENSIONS} sizes. Received: {shown(shape)}"
        )
    return Tensor(entry["name"], tuple(shape), cast(str, entry.get("dtype", "float32")))


def _some(names: Sequence[str], limit: int = 8) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name) for name in names[:limit]) + more
