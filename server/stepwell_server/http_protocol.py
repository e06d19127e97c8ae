"""uvicorn's HTTP protocol with two additions, both about memory that is used where it lies.

**A response's memory is free when the application believes it is.** uvicorn's `send` returns while
the event loop may still hold the memoryview that it was given. A step that then writes in place
tears the pull. With the transport's high-water mark set so that *writing is paused* as long as a
single byte is left, the `send` after a large one waits until the transport has nothing of it.

**A body goes straight to where it belongs**: the extension of `receiving.py`.
"""

from __future__ import annotations

import asyncio
from functools import partial

import httptools
from stepwell_core import wire
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stepwell_server.receiving import HTTP_EXTENSION, BodyReceiver


class StepwellProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose write buffer counts as full unless it is empty, and that can receive into."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set the high-water mark of the new connection."""
        super().connection_made(transport)
        # A plain transport pauses writing above the mark, one with TLS already at it: with 0 that
        # would pause and resume in turns, whatever there is to write.
        has_tls = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if has_tls else 0)

    def on_message_begin(self) -> None:
        """Count the bytes of the new request's body from 0."""
        super().on_message_begin()
        self._body_bytes = 0

    def on_headers_complete(self) -> None:
        """Offer the extension for a body whose length is known."""
        super().on_headers_complete()
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and b"transfer-encoding" not in headers:
            receive = partial(self._receive, self.cycle, int(length))
            self.scope["extensions"] = {HTTP_EXTENSION: {"receive": receive}}

    def on_body(self, body: bytes) -> None:
        """Count what the parser has seen of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    async def _receive(
        self, cycle: RequestResponseCycle, length: int, decoder: wire.Decoder
    ) -> None:
        """Read the rest of the body; what came with the headers is copied, the rest is not.

        Raises:
            StepwellError: The body is not what the decoder expects, or comes too slowly.
            ClientDisconnect: The connection ended.
        """
        early, cycle.body = cycle.body, bytearray()
        decoder.feed(memoryview(early))
        left = length - self._body_bytes if cycle is self.cycle else 0
        if not left or cycle.disconnected:
            return  # complete, or the decoder will miss something
        receiver = BodyReceiver(
            self,
            decoder,
            left,
            finish=partial(self._take_back, cycle),
            give_up=partial(self._give_up, cycle),
        )
        self.transport.set_protocol(receiver)
        self.flow.resume_reading()
        await receiver.done

    def _take_back(self, cycle: RequestResponseCycle) -> None:
        """Go on as if the parser had seen the whole body."""
        self.transport.set_protocol(self)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        cycle.more_body = False
        cycle.message_event.set()

    def _give_up(self, cycle: RequestResponseCycle) -> None:
        """Close the connection: behind the answer, or now if that is sent already."""
        if cycle.response_complete:
            self.transport.close()
        else:
            cycle.keep_alive = False
