"""uvicorn's HTTP protocol with what it lacks, most of it in rooms of its own.

**A response's memory is free when the application believes it is.** uvicorn's `send` returns while
the event loop may still hold the memoryview that it was given. A step that then writes in place
tears the pull. With the transport's high-water mark set so that *writing is paused* as long as a
single byte is left, the `send` after a large one waits until the transport has nothing of it.

**A body goes straight to where it belongs**: the extension of `receiving.py`.

**A worker on this host shares memory** with the server: the extension of `shared_memory`.

**Nobody keeps the server waiting** (`deadlines.py`; `drain.py` for readers), **sends an endless
header or one that can be read in two ways** (`framing.py`), and who does is told why in a problem
document.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import structlog
from stepwell_core.errors import MalformedMessage, ShuttingDown, StepwellError
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stepwell_server import deadlines, framing, problems
from stepwell_server.counts import Counts
from stepwell_server.drain import Drain
from stepwell_server.receiving import HTTP_EXTENSION
from stepwell_server.request_body import RequestBody
from stepwell_server.shared_memory import EXTENSION as MEMORY_EXTENSION
from stepwell_server.shared_memory import ConnectionMemory
from stepwell_server.shared_memory.listener import is_trusted

log = structlog.get_logger("stepwell")

LEAST_SHUTDOWN_S = 2.0
"""Before the grace period ends, for answers to requests whose bodies did not come in time."""


class StepwellProtocol(HttpToolsProtocol):
    """HTTP/1.1 on one connection.

    Args:
        args: uvicorn's.
        counts: Of the server.
        options: uvicorn's.
    """

    _drain: Drain  # of the transport

    def __init__(self, *args: Any, counts: Counts, **options: Any) -> None:
        super().__init__(*args, **options)
        self._counts = counts
        self._behind = self.app
        self._body: RequestBody | None = None  # of the last request whose header is complete
        self._header_timer: asyncio.TimerHandle | None = None
        self._is_in_header = False
        self._has_progressed = False
        self._idle_bytes = 0  # since the last progress: of a header or trailer, or of nothing
        self._refusal: StepwellError | None = None
        self._is_deaf = False
        self._memory: ConnectionMemory | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set the high-water mark of the new connection, and wait for its first header."""
        super().connection_made(transport)
        self._drain = Drain(transport, self.loop, self._counts)
        # A plain transport pauses writing above the mark, one with TLS already at it: with 0 that
        # would pause and resume in turns, whatever there is to write.
        has_tls = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if has_tls else 0)
        if is_trusted(transport):
            self._memory = ConnectionMemory(transport)
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for a body, and stop all clocks."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._unset_header_timer()
        self._drain.stop()
        self._counts.headers_cut += self._is_in_header
        if self._memory is not None:
            self._memory.close()
        if self._body is not None:
            self._body.lose()
            self._body = None

    def pause_writing(self) -> None:
        """Take note that the transport holds bytes of an answer."""
        super().pause_writing()
        self._drain.start()

    def resume_writing(self) -> None:
        """Take note that it does not any more."""
        super().resume_writing()
        self._drain.pause()

    def shutdown(self) -> None:
        """Let a body that is on its way come, but not beyond the grace period."""
        super().shutdown()
        if self._body is not None and not self._body.is_complete:
            grace_s = self.config.timeout_graceful_shutdown or 0
            error = ShuttingDown("The server is stopping; the body did not come in time. Try again")
            self.loop.call_later(max(0.0, grace_s - LEAST_SHUTDOWN_S), self._body.give_up, error)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless nothing is to come any more."""
        while data and not self._is_deaf:
            data = self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        """Parse; returns what was not."""
        self._has_progressed = False
        rest = b""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:  # we stay with HTTP/1.1, as anyone may
            rest = data[upgrade.args[0] :]
            self._renew_parser()
        except httptools.HttpParserError:
            self._refuse(self._refusal or MalformedMessage("This is not an HTTP/1.1 request"))
            return b""
        self._idle_bytes = 0 if self._has_progressed else self._idle_bytes + len(data)
        if self._idle_bytes > framing.MAX_HEADER_BYTES:
            self._refuse(framing.header_too_large(self._idle_bytes))
        elif self._is_in_header and self._header_timer is None:
            self._expect_header()
        return rest

    def on_message_begin(self) -> None:
        """Note that a header has begun."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._is_in_header = self._has_progressed = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of the header; one behind the body comes too late to be checked."""
        if self._is_in_header:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the header; then let the request be answered, and its body be received."""
        try:
            framing.check_size(self.url, self.headers)
            length = framing.body_length(
                self.parser.get_http_version(), self.headers, self.parser.should_upgrade()
            )
            if self.transport.is_closing():
                raise MalformedMessage("The request before this one was the last")
        except StepwellError as error:
            self._refusal = error
            raise
        self._is_in_header, self._has_progressed = False, True
        self._unset_header_timer()
        self._unset_keepalive_if_required()
        body = None
        http: dict[object, object] = {"drain": self._drain}
        extensions: dict[str, Any] = {HTTP_EXTENSION: http}
        if self._memory is not None:
            extensions[MEMORY_EXTENSION] = self._memory
        if length != 0:
            body = RequestBody(
                self, self._behind, length, self._put_back, self._go_idle, self._counts
            )
            http["body"] = body
            if length is not None:
                http["receive"] = body.receive_into
        self.scope["extensions"] = extensions
        self.app = self._behind if body is None else body
        super().on_headers_complete()
        self._body = body
        if body is not None:
            body.cycle = self.cycle
        if self.cycle.scope["http_version"] == "1.0":
            self.cycle.waiting_for_100_continue = False

    def on_body(self, body: bytes) -> None:
        """Count what the parser has seen of the body."""
        self._has_progressed = True
        if self._body is not None:
            self._body.count(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of the request."""
        self._has_progressed = True
        super().on_message_complete()
        if self._body is not None:
            self._body.end()

    def on_response_complete(self) -> None:
        """Read what is left of the body, if that is the last request."""
        super().on_response_complete()
        if self._body is None or not self.cycle.response_complete or self.transport.is_closing():
            return
        if not self._body.is_complete:
            self._unset_keepalive_if_required()
        self._body.on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless a worker would lose what it shares with it."""
        if self._memory is None or not self._memory.is_used:
            super().timeout_keep_alive_handler()

    def _put_back(self) -> None:
        self.transport.set_protocol(self)
        self._renew_parser()

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _go_idle(self) -> None:
        """Wait for the next request, after a body that was longer on its way than its answer."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _expect_header(self) -> None:
        self._unset_header_timer()
        self._header_timer = self.loop.call_later(deadlines.HEADER_S, self._on_header_late)

    def _unset_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_late(self) -> None:
        """Close, unless the client waits for an answer: then nothing of its header may be read."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self._expect_header()

    def _refuse(self, error: StepwellError) -> None:
        """Answer what is not a request, and close; requests before it are answered first."""
        self._is_deaf = True
        self._unset_header_timer()
        if self.transport.is_closing():
            return
        log.info("request_refused", code=error.code, client=self.client)
        if not self._is_in_header and self._body is not None and not self._body.is_complete:
            self._body.give_up(error)
        elif self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self._unset_keepalive_if_required()
            answer = problems.problem(error)
            lines = [b"%s: %s\r\n" % line for line in answer.raw_headers]
            end = [b"connection: close\r\n\r\n", bytes(answer.body)]
            self.transport.write(b"".join([STATUS_LINE[answer.status_code], *lines, *end]))
            deadlines.linger(self.loop, self.transport)
