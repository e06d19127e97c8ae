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

from stepwell_core import wire
from stepwell_core.errors import StepwellError

HTTP_EXTENSION = "stepwell.receive"
"""`await scope["extensions"][HTTP_EXTENSION]["receive"](decoder)` reads the rest of the body; with
None it is thrown away. `[...]["drain"]` is the `Drain` of the connection, `[...]["body"]` the
`RequestBody`, if there is one."""

SCRATCH_BYTES = 1 << 16  # what is thrown away needs no more room than a socket gives at a time


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands in for the HTTP protocol while one body comes.

    Args:
        owner: The HTTP protocol, which is told of everything that is not the body's.
        decoder: Says where the bytes belong; its `receive` was called. It is let go of with the
            payload's last byte or the first error, and the buffers with it. None throws them away.
        left: Bytes of the body still to come; at least 1.
        on_bytes: Called with the number of bytes each time that some have come.
        on_end: Called once when the last byte is there, to put the HTTP protocol back.
    """

    def __init__(
        self,
        owner: asyncio.Protocol,
        decoder: wire.Decoder | None,
        left: int,
        on_bytes: Callable[[int], None],
        on_end: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._decoder = decoder
        self._left = left
        self._on_bytes = on_bytes
        self._on_end = on_end
        self._scratch = memoryview(b"")
        self._done: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        """Return when the whole body is there.

        Nothing is written into the buffers any more when it has returned, raised or was cancelled.

        Raises:
            StepwellError: Its bytes are not what the decoder expects, or what `fail` was told.
        """
        assert self._done is not None, "wait() is called once, before the first byte"
        try:
            await self._done
        finally:
            self._done = self._decoder = None

    def fail(self, error: Exception) -> None:
        """Let `wait` raise an error, unless it ended already; what still comes is thrown away."""
        # Nothing of the error may stay here: it knows the handler's frames, and they the buffers.
        done, self._done, self._decoder = self._done, None, None
        if done is not None and not done.done():
            done.set_exception(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go: never more than the body has left."""
        target = memoryview(b"") if self._decoder is None else self._decoder.target()
        if not target:
            if not self._scratch:
                self._scratch = memoryview(bytearray(SCRATCH_BYTES))
            target = self._scratch
        return target[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of bytes that have come."""
        self._left -= nbytes
        self._on_bytes(nbytes)
        if self._decoder is not None:
            try:
                self._take(self._decoder, nbytes)
            except StepwellError as error:
                self.fail(error)
        if not self._left:
            done, self._done, self._decoder = self._done, None, None
            if done is not None and not done.done():
                done.set_result(None)
            self._on_end()

    def _take(self, decoder: wire.Decoder, nbytes: int) -> None:
        if decoder.target():
            decoder.advance(nbytes)
        else:
            decoder.feed(bytes(self._scratch[:nbytes]))

    def eof_received(self) -> None:
        """The client sends no more: let the connection close."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the HTTP protocol, which tells the handler."""
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on what concerns the answer."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """Pass on what concerns the answer."""
        self._owner.resume_writing()
