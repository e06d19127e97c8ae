"""uvicorn's HTTP protocol, so that a response's memory is free when the application believes it is.

uvicorn's `send` returns while the event loop may still hold the memoryview that it was given. A
step that then writes in place tears the pull. With the transport's high-water mark at 0 the flow
control reports *writing is paused* as long as a single byte is left, so the `send` after a large
one waits until the transport has nothing of it.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class StepwellProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a write buffer that counts as full unless it is empty."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Set the high-water mark of the new connection."""
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)
