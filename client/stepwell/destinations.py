"""Where the payload of an answer goes: new arrays, the caller's own, or a callback piece by piece.

A transport asks a destination for views when the header of the answer is there, fills them one
after the other, and notes how far it got. It knows nothing else of tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from stepwell_core.errors import (
    DtypeMismatch,
    InvalidArgument,
    LayoutMismatch,
    ShapeMismatch,
    shown,
)
from stepwell_core.layout import (
    Arenas,
    Array,
    Layout,
    Tensor,
    byte_view,
    byte_views,
    payload_dtype,
)

from stepwell.pull_buffers import PullBuffers

WINDOW_BYTES = 16 << 20
"""The most that `into` is given at a time, and all that it needs of memory; one a dtype."""

Into = Callable[[str, int, Array], object]
"""Takes a tensor's name, the index of the first element, and a 1-D array of elements."""

_Piece = tuple[str, int, Array]
_Window = tuple[int, Iterator[_Piece]]
"""What is still missing of the payload when a window is full, and the pieces that lie in it."""


class Destination(Protocol):
    """Where the payload of the answer to one call goes."""

    @property
    def can_begin(self) -> bool:
        """Whether a payload may come from its first byte; false means the call is not repeated."""

    def begin(self, selection: Layout) -> Sequence[memoryview]:
        """Return byte views to be filled one after the other with a payload of `selection`."""

    def note(self, missing: int) -> None:
        """Note that all but the last `missing` bytes are there."""

    def tensors(self) -> Mapping[str, Array]:
        """Return the arrays that were filled, by name; when all bytes are there."""


class NewArrays:
    """Arrays in arenas that nobody else looks at; they belong to the caller.

    Args:
        dtype: Of the payload.
        buffers: Where arenas for a payload of the whole model may come from.
        whole: The model's layout.
    """

    can_begin = True

    def __init__(
        self,
        dtype: str = "native",
        buffers: PullBuffers | None = None,
        whole: Layout | None = None,
    ) -> None:
        self._dtype = dtype
        self._buffers = buffers
        self._whole = whole
        self._selection: Layout | None = None
        self._arenas: Arenas = {}

    def begin(self, selection: Layout) -> Sequence[memoryview]:
        """Return the bytes of arenas."""
        self._selection = selection
        self._arenas = {}  # of an attempt that broke; they may be used again
        if self._buffers is not None and selection is self._whole:
            self._arenas = self._buffers.take(selection, self._dtype)
        else:
            self._arenas = selection.new_payload(self._dtype)
        return byte_views(self._arenas)

    def note(self, missing: int) -> None:
        """Nothing is done before all is there."""

    def tensors(self) -> Mapping[str, Array]:
        """Return each tensor as a view of an arena."""
        assert self._selection is not None, "tensors() comes after begin()"
        return self._selection.views(
            {dtype: seen_as(self._dtype, arena) for dtype, arena in self._arenas.items()}
        )


class InPlace(NewArrays):
    """Arrays where the server keeps them, in shared memory; new ones if they come over the wire."""

    def __init__(self) -> None:
        super().__init__()
        self._let_go: Callable[[], None] | None = None

    def adopt(self, selection: Layout, arenas: Arenas, let_go: Callable[[], None]) -> None:
        """Take arenas that somebody else owns, to be looked at until `let_go` is called."""
        self._selection, self._arenas, self._let_go = selection, arenas, let_go

    def let_go(self) -> None:
        """Give back what was adopted, once."""
        let_go, self._let_go = self._let_go, None
        self._arenas = {}
        if let_go is not None:
            let_go()


class CallersArrays:
    """Arrays that the caller gave: `pull(out=...)`.

    Args:
        selection: The tensors that will be pulled.
        out: An array for each, in its shape, writeable, in C order and of this machine's byte
            order.
        dtype: Of the payload.

    Raises:
        InvalidArgument: It is no mapping of arrays, or one cannot be written to.
        LayoutMismatch, ShapeMismatch, DtypeMismatch: They are not exactly the tensors.
    """

    can_begin = True

    def __init__(self, selection: Layout, out: Mapping[str, Array], dtype: str = "native") -> None:
        if not isinstance(out, Mapping):
            raise InvalidArgument(
                f"`out` has arrays by name, as in {{'kernel': array}}. Received: "
                f"{type(out).__name__}"
            )
        if out.keys() != selection.segments.keys():
            missing = [name for name in selection.names if name not in out]
            unknown = [shown(name) for name in out if name not in selection.segments]
            raise LayoutMismatch(
                "`out` has an array for each tensor that is pulled, and no other. Missing: "
                f"{missing[:8]}; unknown: {unknown[:8]}",
                missing=missing[:16],
                unknown=unknown[:16],
            )
        for tensor in selection:
            _check_out(tensor, out[tensor.name], payload_dtype(dtype, tensor.dtype), dtype)
        self._selection = selection
        self._out = {name: out[name] for name in selection.names}

    def begin(self, selection: Layout) -> Sequence[memoryview]:
        """Return the bytes of each array, in the order in which they travel."""
        if selection != self._selection:
            raise LayoutMismatch("The answer has other tensors than `out`. Open the model again")
        return [byte_view(self._out[name]) for name in selection.segments]

    def note(self, missing: int) -> None:
        """Nothing is done before all is there."""

    def tensors(self) -> Mapping[str, Array]:
        """Return the caller's arrays."""
        return self._out


class Pieces:
    """A callback that is given the elements in order: `pull(into=...)`.

    Each piece lies in one tensor and in one window of at most `window_bytes`. After the first one
    was delivered the call is not repeated: another answer might be of another version.

    Args:
        into: The callback; the array is its own until it returns.
        dtype: Of the payload.
        window_bytes: A multiple of 8, at least 64 KiB.
    """

    def __init__(self, into: Into, dtype: str = "native", window_bytes: int = WINDOW_BYTES) -> None:
        if not callable(into) or inspect.iscoroutinefunction(into):
            raise InvalidArgument(
                "`into` is a plain function of a name, an index and an array; an asyncio client too"
                f" calls it without `await`. Received: {type(into).__name__}"
            )
        self._into = into
        self._dtype = dtype
        self._window_bytes = window_bytes
        self._windows: list[_Window] = []
        self.can_begin = True

    def begin(self, selection: Layout) -> Sequence[memoryview]:
        """Return the same window again and again; there is one for each dtype of parameters."""
        views: list[memoryview] = []
        self._windows = []
        missing = selection.payload_nbytes(self._dtype)
        for arena_dtype, size in selection.sizes.items():
            dtype = payload_dtype(self._dtype, arena_dtype)
            length = self._window_bytes // dtype.itemsize
            window = np.empty(min(length, size), dtype)
            for start in range(0, size, length):
                stop = min(start + length, size)
                filled = window[: stop - start]
                views.append(byte_view(filled))
                missing -= filled.nbytes
                elements = seen_as(self._dtype, filled)
                pieces = _pieces_of(selection, arena_dtype, start, elements)
                self._windows.append((missing, pieces))
        self._windows.reverse()  # the next one is the last
        return views

    def note(self, missing: int) -> None:
        """Deliver what lies in windows that are full now."""
        while self._windows and missing <= self._windows[-1][0]:
            self.can_begin = False
            for name, index, elements in self._windows.pop()[1]:
                self._into(name, index, elements)

    def tensors(self) -> Mapping[str, Array]:
        """Return nothing: the callback has had it all."""
        return {}


def _pieces_of(
    selection: Layout, arena_dtype: str, start: int, elements: Array
) -> Iterator[_Piece]:
    """Yield the parts of tensors in one window, which begins at element `start` of its arena."""
    stop = start + elements.size
    for name, segment in selection.segments.items():
        first, last = max(segment.start, start), min(segment.stop, stop)
        if segment.tensor.dtype == arena_dtype and first < last:
            yield name, first - segment.start, elements[first - start : last - start]


def _check_out(tensor: Tensor, array: object, dtype: np.dtype[Any], said: str) -> None:
    """Raise unless the payload of a tensor can be written into an array as it comes."""
    if not isinstance(array, np.ndarray):
        raise InvalidArgument(
            f"`out` has NumPy arrays; a torch tensor on the CPU gives one with .numpy(). Received: "
            f"{type(array).__name__} for {tensor.name!r}"
        )
    if array.shape != tensor.shape:
        raise ShapeMismatch(
            f"Tensor {tensor.name!r} has shape {tensor.shape}. Received in `out`: {array.shape}",
            tensor=tensor.name,
            expected=list(tensor.shape),
            received=list(array.shape),
        )
    names = {dtype.name, said} if said != "native" else {dtype.name}
    if array.dtype.name not in names or not array.dtype.isnative:
        raise DtypeMismatch(
            f"Tensor {tensor.name!r} comes as {' or '.join(sorted(names))}. Received in `out`: "
            f"{array.dtype}",
            tensor=tensor.name,
            received=str(array.dtype),
        )
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise InvalidArgument(
            "The arrays of `out` are writeable and in C order, for the bytes go straight into them."
            f" Received otherwise: {tensor.name!r}"
        )


def seen_as(dtype: str, array: Array) -> Array:
    """Return a payload's array as its dtype; bfloat16 stays uint16 where ml_dtypes is missing."""
    if dtype != "bfloat16":
        return array
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return array
    return array.view(bfloat16)
