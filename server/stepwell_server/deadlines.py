"""How long a connection may keep the server waiting; uvicorn itself waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from stepwell_core.errors import BodyTooSlow

HEADER_S = 5.0  # a header is one packet or two; a person who types one is not served
TLS_HANDSHAKE_S = 5.0  # four packets; before them the server knows nothing of who is there
LINGER_S = 1.0  # for a refused client to read the answer: closed at once, it may see a reset only
LEAST_BODY_BYTES_PER_S = 16 * 1024  # a modem of 1998, and 1/1000 of what training is usable at
BODY_WINDOW_S = 5.0  # so long a body may stall; longer than TCP needs for a few lost packets
BODY_S = 30.0  # for a body of any size,
BODY_BYTES_PER_S = 1 << 20  # and so fast on the whole: at the least rate 100 MB would take 2 hours
TICK_S = 0.001  # a timer may come early by a little


class Pace:
    """Holds the sender of a body to a least rate, and to a deadline for the whole of it.

    Both count while its bytes are waited for. Time that the server spends otherwise (the sender may
    be held up by it then) does not count.

    Args:
        on_slow: Called with the error, in the event loop, each time that a window brought too
            little, or when the deadline is over; nothing is waited for then.
        loop: Whose time counts.
        length: Of the body, in bytes; 0 if it is not known, then what has come counts.

    Attributes:
        heard: When bytes came last, or began to be waited for.
    """

    def __init__(
        self,
        on_slow: Callable[[BodyTooSlow], None],
        loop: asyncio.AbstractEventLoop,
        length: int = 0,
    ) -> None:
        self._on_slow = on_slow
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._begun = 0.0
        self.heard = 0.0
        self._window_s = BODY_WINDOW_S  # what is left of it
        self._window_bytes = 0
        self._length = length
        self._waited_s = 0.0
        self._received = 0

    @property
    def _left_s(self) -> float:
        """What is left until the deadline."""
        size = max(self._length, self._received)
        return BODY_S + size / BODY_BYTES_PER_S - self._waited_s

    @property
    def silent_since(self) -> float | None:
        """Since when bytes are waited for and none has come; None if none are waited for."""
        return None if self._timer is None else self.heard

    def count(self, nbytes: int) -> None:
        """Take note of bytes that have come."""
        self.heard = self._loop.time()
        self._received += nbytes
        self._window_bytes += nbytes

    def start(self) -> None:
        """Say that bytes are waited for."""
        if self._timer is None:
            self.heard = self._loop.time()
            self._go_on()

    def _go_on(self) -> None:
        self._begun = self._loop.time()
        due_s = max(0.0, min(self._window_s, self._left_s))
        self._timer = self._loop.call_later(due_s, self._check)

    def pause(self) -> None:
        """Say that they are not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            waited_s = self._loop.time() - self._begun
            self._window_s -= waited_s
            self._waited_s += waited_s

    def _check(self) -> None:
        self.pause()
        if self._left_s <= TICK_S:
            reason = (
                f"A body has {BODY_S:g} s and a second more for each {BODY_BYTES_PER_S} bytes. "
                f"Received: {self._received} bytes in {self._waited_s:.0f} s"
            )
        elif self._window_s > TICK_S or self._is_window_full():
            self._go_on()
            return
        else:
            reason = (
                f"A body comes at {LEAST_BODY_BYTES_PER_S} bytes a second at least. Received: "
                f"{self._window_bytes} in {BODY_WINDOW_S:g} s"
            )
        self._window_bytes = 0
        self._on_slow(BodyTooSlow(reason))

    def _is_window_full(self) -> bool:
        """End a window that brought enough, and begin another."""
        self._window_s = BODY_WINDOW_S
        if self._window_bytes < LEAST_BODY_BYTES_PER_S * BODY_WINDOW_S:
            return False
        self._window_bytes = 0
        return True


def linger(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
    """Close a connection behind what was written, while the other side may be sending still."""
    if transport.can_write_eof():
        transport.write_eof()
        loop.call_later(LINGER_S, transport.close)
    else:
        transport.close()  # TLS has an end of its own, which waits for the other side's
