"""A disk whose n-th call fails, once or from then on; to fail each call of something in turn."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stepwell_server.storage import disk


class FailingDisk(disk.System):
    """See above. Counts only while it is `armed`. Thread-safe."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._left: int | None = None  # calls until the one that fails
        self._number = 0
        self._stays = False
        self.has_failed = False

    @contextlib.contextmanager
    def armed(self, nth: int, number: int, *, stays: bool = False) -> Iterator[None]:
        """Let the n-th call of the block fail, counted from 1, or with `stays` all from it on."""
        self._left, self._number, self._stays, self.has_failed = nth, number, stays, False
        try:
            yield
        finally:
            self._left = None

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        """Open a file through the page cache, where writing takes less time."""
        return super().open(path, flags & ~os.O_DIRECT, mode)

    def fails(self) -> bool:
        """Count a call; return whether it is to fail."""
        with self._changing:
            if self._left is None:
                return False
            self._left -= 1
            is_due = self._left <= 0 if self._stays else self._left == 0
            self.has_failed |= is_due
            return is_due

    def error(self) -> OSError:
        """Return what a call fails of."""
        return OSError(self._number, os.strerror(self._number))


def _failing(name: str) -> Callable[..., Any]:
    original = vars(FailingDisk).get(name) or getattr(disk.System, name)

    def call(self: FailingDisk, *arguments: Any) -> Any:
        fails = self.fails()
        if fails and name != "close":  # a descriptor is closed whatever `close` says
            raise self.error()
        result = original(self, *arguments)
        if fails:
            raise self.error()
        return result

    return call


for _name in [name for name in vars(disk.System) if not name.startswith("_")]:
    setattr(FailingDisk, _name, _failing(_name))
