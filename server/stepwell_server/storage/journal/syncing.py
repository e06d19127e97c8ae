"""The thread of `everysec`: syncs about a second after something was written, sleeps otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class DelayedSync:
    """Calls a function on a thread of its own, a delay after it was first asked to.

    Args:
        sync: Called without arguments; must not raise.
        delay_s: Between `ask` and the call. What is asked for meanwhile is answered by the same
            call, what is asked for during the call by the next.
        name: Of the thread.
    """

    def __init__(self, sync: Callable[[], None], delay_s: float, name: str) -> None:
        self._sync = sync
        self._delay_s = delay_s
        self._changed = threading.Condition()
        self._due_s: float | None = None  # by the monotonic clock
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Have the function called when the delay is over, unless it is going to be."""
        if self._due_s is None:
            with self._changed:
                self._due_s = time.monotonic() + self._delay_s
                self._changed.notify()

    def close(self) -> None:
        """End the thread; when this returns the function is not running and will not be called."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while self._waits_until_due():
            self._sync()

    def _waits_until_due(self) -> bool:
        """Wait; return whether to sync, or False when it is over."""
        with self._changed:
            while not self._is_closed:
                left_s = None if self._due_s is None else self._due_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    self._due_s = None
                    return True
                self._changed.wait(left_s)
        return False
