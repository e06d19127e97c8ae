"""How long a connection may keep the server waiting; uvicorn itself waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from stepwell_core.errors import BodyTooSlow

HEADER_S = 5.0  # a header is one packet or two; a person who types one is not served
LINGER_S = 1.0  # for a refused client to read the answer: closed at once, it may see a reset only
LEAST_BODY_BYTES_PER_S = 16 * 1024  # a modem of 1998, and 1/1000 of what training is usable at
BODY_WINDOW_S = 5.0  # so long a body may stall; longer than TCP needs for a few lost packets


class Pace:
    """Holds the sender of a body to a least rate, while its bytes are waited for.

    Time that the server spends otherwise (the sender may be held up by it then) does not count.

    Args:
        on_slow: Called with the error, in the event loop, each time that a window brought too
            little; nothing is waited for then.
        loop: Whose time counts.
    """

    def __init__(
        self, on_slow: Callable[[BodyTooSlow], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._on_slow = on_slow
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._begun = 0.0
        self._left_s = BODY_WINDOW_S
        self._received = 0

    def count(self, nbytes: int) -> None:
        """Take note of bytes that have come."""
        self._received += nbytes

    def start(self) -> None:
        """Say that bytes are waited for."""
        if self._timer is None:
            self._begun = self._loop.time()
            self._timer = self._loop.call_later(self._left_s, self._check)

    def pause(self) -> None:
        """Say that they are not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left_s = max(0.0, self._left_s - (self._loop.time() - self._begun))

    def _check(self) -> None:
        received, self._received = self._received, 0
        self._timer, self._left_s = None, BODY_WINDOW_S
        if received >= LEAST_BODY_BYTES_PER_S * BODY_WINDOW_S:
            self.start()
            return
        self._on_slow(
            BodyTooSlow(
                f"A body comes at {LEAST_BODY_BYTES_PER_S} bytes a second at least. Received: "
                f"{received} in {BODY_WINDOW_S:g} s"
            )
        )


def linger(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
    """Close a connection behind what was written, while the other side may be sending still."""
    if transport.can_write_eof():
        transport.write_eof()
        loop.call_later(LINGER_S, transport.close)
    else:
        transport.close()  # TLS has an end of its own, which waits for the other side's
