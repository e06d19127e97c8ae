"""What a forked process must make anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Something of this process alone: a forked one must not write into its parent's sockets.

    Args:
        make: Makes it, now and in each process that is forked later.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._pid = os.getpid()
        self._own = make()
        self._parents: list[T] = []  # kept, since forgetting them would close their sockets

    def get(self) -> T:
        """Return what belongs to this process."""
        if self._pid != os.getpid():
            self._parents.append(self._own)
            self._own, self._pid = self._make(), os.getpid()
        return self._own
