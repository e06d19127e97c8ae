"""Receives a large body straight to where it belongs, past the ASGI path.

The ASGI path copies a body four times and wakes the event loop for every 64 KiB. Here the handler,
once it has checked header and token, asks the protocol for the rest of the body: the transport's
protocol is replaced by a `BodyReceiver`, into whose buffers the event loop reads from the socket,
until the last byte of the body. Then the HTTP protocol is put back.

`HTTP_EXTENSION` in an ASGI scope says that the server can do this; without it a body is streamed,
with the same result. A body that turns out to be wrong is read to its end and thrown away, so that
the client, which may still be sending, gets to read the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from stepwell_core import wire
from stepwell_core.errors import BodyTooSlow, StepwellError

HTTP_EXTENSION = "stepwell.receive"
"""`await scope["extensions"][HTTP_EXTENSION]["receive"](decoder)` reads the rest of the body."""

SCRATCH_BYTES = 1 << 16
CHECK_EVERY_S = 5.0
LEAST_BYTES_PER_S = 16 * 1024


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands in for the HTTP protocol while one body comes.

    Args:
        owner: The HTTP protocol, which is told of everything that is not the body's.
        decoder: Says where the bytes belong; its `receive` was called.
        left: Bytes of the body still to come; at least 1.
        finish: Called once when the last byte is there, to put the HTTP protocol back.
        give_up: Called once if the rest will not be waited for, to close the connection.
    """

    def __init__(
        self,
        owner: asyncio.Protocol,
        decoder: wire.Decoder,
        left: int,
        finish: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._decoder = decoder
        self._left = left
        self._finish = finish
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._scratch = memoryview(bytearray(0))
        self._left_at_check = left
        self._deadline = self._loop.call_later(CHECK_EVERY_S, self._check_rate)
        self.done: asyncio.Future[None] = self._loop.create_future()
        """Ends when the payload is there, or with the error that was found first."""

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: never more than the body has left."""
        target = memoryview(b"") if self.done.done() else self._decoder.target()
        if not target:
            if not self._scratch:
                self._scratch = memoryview(bytearray(SCRATCH_BYTES))
            target = self._scratch
        return target[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of bytes that have come."""
        self._left -= nbytes
        if not self.done.done():
            try:
                self._take(nbytes)
            except StepwellError as error:
                self.done.set_exception(error)
        if not self._left:
            self._deadline.cancel()
            self._finish()
            if not self.done.done():
                self.done.set_result(None)

    def _take(self, nbytes: int) -> None:
        if self._decoder.target():
            self._decoder.advance(nbytes)
        else:
            self._decoder.feed(bytes(self._scratch[:nbytes]))

    def _check_rate(self) -> None:
        """Give up on a body that stalls or trickles."""
        received = self._left_at_check - self._left
        if received >= LEAST_BYTES_PER_S * CHECK_EVERY_S:
            self._left_at_check = self._left
            self._deadline = self._loop.call_later(CHECK_EVERY_S, self._check_rate)
            return
        if not self.done.done():
            self.done.set_exception(
                BodyTooSlow(
                    f"A body comes at {LEAST_BYTES_PER_S} bytes a second at least. Received: "
                    f"{received} in {CHECK_EVERY_S:.0f} s; {self._left} were missing"
                )
            )
        self._give_up()

    def eof_received(self) -> None:
        """The client sends no more: let the connection close."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler and the HTTP protocol."""
        self._deadline.cancel()
        if not self.done.done():
            self.done.set_exception(ClientDisconnect())
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on what concerns the answer."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on what concerns the answer."""
        self._owner.resume_writing()
