"""How calls get to a server and answers back. Foreign errors are translated here, nowhere else.

`direct.py` over sockets of our own, `over_httpx.py` with httpx; both read answers by `answers.py`.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from stepwell.calls import Answer, Call
from stepwell.endpoint import Endpoint
from stepwell.transport.direct import DirectTransport
from stepwell.transport.over_httpx import AsyncHttpxTransport, HttpxTransport

__all__ = [
    "AsyncHttpxTransport",
    "DirectTransport",
    "HttpxTransport",
    "Transport",
    "new_transport",
]


class Transport(Protocol):
    """Sends calls and blocks. Thread-safe; a forked process may go on using it."""

    def send(self, call: Call) -> Answer:
        """Make a call.

        Raises:
            TransportError: There was no answer, or none that could be read.
            StepwellError: What the server says.
        """

    def stream(self, call: Call) -> Generator[bytes]:
        """Make a call whose answer has no end, and yield it as it comes; raises as `send`."""

    def close(self) -> None:
        """Close all connections."""


def new_transport(endpoint: Endpoint) -> Transport:
    """Return what sends a blocking client's calls: direct, or over the environment's proxy."""
    return HttpxTransport(endpoint) if endpoint.has_proxy else DirectTransport(endpoint)
