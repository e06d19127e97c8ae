"""Arenas that are used again for the next pull, once nobody looks at them.

A new array of 102 MB costs milliseconds of page faults, each time. So the arenas of the last two
pulls are kept, two because a training loop still holds the old parameters while the new ones come.

Whether somebody looks at an arena is what CPython's reference count says: a view, a view of a
view, a `memoryview`, a tensor of another framework on the same memory each hold a reference to the
array that owns it. A bare address (`array.ctypes.data` as a number) holds none: whoever passes one
on keeps the array for as long.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
from stepwell_core.layout import Arenas, Layout, payload_dtype

MAX_KEPT = 2


class PullBuffers:
    """The arenas of the last pulls of one model. Thread-safe."""

    def __init__(self) -> None:
        self._kept: list[Arenas] = []
        self._lock = threading.Lock()

    def take(self, layout: Layout, dtype: str = "native") -> Arenas:
        """Return arenas for a payload, uninitialized; they belong to the caller.

        They are those of an earlier pull if they fit and there is no other reference to them.
        """
        with self._lock:
            for arenas in self._kept:
                if _fits(arenas, layout, dtype) and _is_unseen(arenas):
                    return dict(arenas)
            made = layout.new_payload(dtype)
            self._kept = [*self._kept[1 - MAX_KEPT :], dict(made)]
            return made

    def clear(self) -> None:
        """Forget all arenas; those that nobody looks at are freed."""
        with self._lock:
            self._kept = []


def _fits(arenas: Arenas, layout: Layout, dtype: str) -> bool:
    wanted = {name: (size, payload_dtype(dtype, name)) for name, size in layout.sizes.items()}
    return wanted == {name: (array.size, array.dtype) for name, array in arenas.items()}


def _is_unseen(arenas: Arenas) -> bool:
    return _most_references(arenas) <= _LEAST


def _most_references(arenas: Arenas) -> int:
    return max(map(sys.getrefcount, arenas.values()))


_LEAST = _most_references({"float32": np.empty(1, np.float32)})
"""What is counted for an array that only its arenas refer to; it differs between Pythons."""
