"""How commands that would leave something behind are stopped: they clear up, whoever stops them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; `kill`, `timeout` and systemd; a terminal that was closed."""


@contextlib.contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block for whatever would end the process; main thread only.

    What is ignored (`nohup`), or handled by others, stays so.
    """
    with _handled(signal.SIG_DFL, signal.default_int_handler):
        yield


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Have the first stop that comes in the block wait for its end; the second does not wait.

    Raises:
        KeyboardInterrupt: One came.
    """
    has_come = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        if has_come:
            raise KeyboardInterrupt
        has_come = True

    with _handled(signal.default_int_handler, note):
        yield
    if has_come:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(before: Handler, now: Handler) -> Iterator[None]:
    """Have those stops that were handled in one way be handled in another in the block."""
    ours = [number for number in STOPS if signal.getsignal(number) is before]
    for number in ours:
        signal.signal(number, now)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before)
