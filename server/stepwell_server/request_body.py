"""The body of one request, from the end of its header to the last byte, whoever reads it.

Three may read it: the handler through ASGI's `receive`, the handler through `receive_into`, or
nobody, when the answer was given early; then it is read and thrown away, so that the client, which
may still be sending, gets to read the answer. All three are held to the same rate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from stepwell_core import wire
from stepwell_core.errors import BodyTooSlow, StepwellError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stepwell_server import deadlines
from stepwell_server.counts import Counts
from stepwell_server.deadlines import Pace
from stepwell_server.receiving import BodyReceiver


class RequestBody:
    """An ASGI application around another one, for one request that has a body.

    Args:
        protocol: Of the connection.
        app: Answers the request.
        length: Of the body; None if it comes in chunks.
        put_back: Makes `protocol` the transport's protocol again, with a fresh parser.
        on_idle: Called when the body is there at last and its answer was sent before.
        counts: Of the server.
    """

    cycle: RequestResponseCycle  # uvicorn's state of the request; set before the application runs

    def __init__(
        self,
        protocol: HttpToolsProtocol,
        app: ASGIApp,
        length: int | None,
        put_back: Callable[[], None],
        on_idle: Callable[[], None],
        counts: Counts,
    ) -> None:
        self.is_complete = False
        self._protocol = protocol
        self._app = app
        self._length = length
        self._put_back = put_back
        self._on_idle = on_idle
        self._counts = counts
        self._pace = Pace(self._on_slow, protocol.loop, length or 0)
        self._received = 0
        self._receiver: BodyReceiver | None = None
        self._error: Exception | None = None  # for the handler's next `receive`
        self._is_failed = False
        self._is_to_close = False
        self._ended: float | None = None  # when bytes came last, once no more do

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        await self._app(scope, partial(self._receive, receive), partial(self._send, send))

    @property
    def silent_since(self) -> float | None:
        """Since when its sender could have sent something and did not.

        By the event loop's clock; None if it is the server that does not read, or has it all.
        """
        return self._pace.silent_since if self._ended is None else self._ended

    def count(self, nbytes: int) -> None:
        """Take note of bytes that have come."""
        self._received += nbytes
        self._pace.count(nbytes)

    def end(self) -> None:
        """Take note that the last byte has come."""
        self.is_complete = True
        self._pace.pause()
        if self.cycle.response_complete:
            if self._is_to_close:
                self._protocol.transport.close()
            else:
                self._on_idle()

    def lose(self) -> None:
        """Take note that the connection was lost."""
        silent_since = self.silent_since
        self._ended = self._protocol.loop.time() if silent_since is None else silent_since
        self._pace.pause()
        if not self.is_complete and not self._is_failed:
            self._counts.bodies_cut += 1
        if self._receiver is not None:
            self._receiver.fail(ClientDisconnect())

    def _on_slow(self, error: BodyTooSlow) -> None:
        self._counts.bodies_too_slow += 1
        self.give_up(error)

    def give_up(self, error: StepwellError) -> None:
        """Wait no longer: answer with an error, unless that was done, and close the connection."""
        if self.is_complete or self._is_failed:
            return
        self._pace.pause()
        self._ended = self._pace.heard
        self._is_failed = True
        if self.cycle.response_complete:
            self._protocol.transport.close()
            return
        if self._receiver is not None:
            self._receiver.fail(error)
        else:
            self._error = error
        self.cycle.keep_alive = False
        self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Read what the handler left, so that the client gets to read the answer."""
        transport = self._protocol.transport
        if self.is_complete:
            if self._is_to_close:
                transport.close()
        elif self._is_failed:
            deadlines.linger(self._protocol.loop, transport)
        else:
            self._pace.start()

    async def receive_into(self, decoder: wire.Decoder | None) -> None:
        """Read the rest of the body; what came with the headers is copied, the rest is not.

        Args:
            decoder: Says where it belongs; None throws it away.

        Raises:
            StepwellError: The body is not what the decoder expects, or comes too slowly.
            ClientDisconnect: The connection ended.
        """
        cycle = self.cycle
        early, cycle.body = cycle.body, bytearray()
        if decoder is not None:
            decoder.feed(memoryview(early))
        if self.is_complete:
            return
        if self._is_failed or self.cycle.disconnected:
            raise self._failure()
        assert self._length is not None
        receiver = self._receiver = BodyReceiver(
            self._protocol, decoder, self._length - self._received, self.count, self._on_received
        )
        self._protocol.transport.set_protocol(receiver)
        self._protocol.flow.resume_reading()
        self._pace.start()
        try:
            await receiver.wait()
        finally:
            self._pace.pause()

    def _on_received(self) -> None:
        """Go on as if the parser had seen the whole body."""
        self._receiver = None
        self._put_back()
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self.end()

    async def _receive(self, receive: Receive) -> Message:
        if self.is_complete:
            return await receive()
        if self._is_failed or self.cycle.disconnected:
            raise self._failure()
        self._pace.start()
        try:
            message = await receive()
        finally:
            if not self.cycle.response_complete:  # else nobody reads the body, at the same rate
                self._pace.pause()
        if self._is_failed:
            raise self._failure()
        return message

    def _failure(self) -> Exception:
        # Not kept, here or in a local variable: an error knows the frames that it went through, and
        # those hold buffers as large as the model.
        try:
            return self._error or ClientDisconnect()
        finally:
            self._error = None

    async def _send(self, send: Send, message: Message) -> None:
        if not self.is_complete:
            if message["type"] == "http.response.start":
                # A client that waits for "100 Continue" reads another answer and may send anything.
                if self.cycle.waiting_for_100_continue:
                    self.cycle.keep_alive = False
            elif not message.get("more_body", False) and not self.cycle.keep_alive:
                # uvicorn would close now, and what is still on its way would make it a reset.
                self.cycle.keep_alive = self._is_to_close = True
        await send(message)
