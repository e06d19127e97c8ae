"""uvicorn's HTTP protocol, so that a response's memory is free when the application believes it is.

uvicorn's `send` returns while the event loop may still hold the memoryview that it was given. A
step that then writes in place tears the pull. With the transport's high-water mark set so that
*writing is paused* as long as a single byte is left, the `send` after a large one waits until the
transport has nothing of it.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class StepwellProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a write buffer that counts as full unless it is empty."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set the high-water mark of the new connection."""
        super().connection_made(transport)
        # A plain transport pauses writing above the mark, one with TLS already at it: with 0 that
        # would pause and resume in turns, whatever there is to write.
        has_tls = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=1 if has_tls else 0)
