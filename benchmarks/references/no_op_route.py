"""The least that HTTP costs in Python: http.client, uvicorn, and a Starlette route that only reads.

No header is checked, nothing is decoded and nothing is done with the body.
"""

from __future__ import annotations

import http.client

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.references import uvicorn_thread


class NoOpClient:
    """A caller of the route, on one connection.

    Args:
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._connection.connect()

    def push(self, body: bytes) -> None:
        """Post a body."""
        self._connection.request("POST", "/", body)
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status == 200, f"the route answers 200. Received: {answer.status}"

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


async def read(request: Request) -> Response:
    await request.body()
    return Response(b"ok")


app = Starlette(routes=[Route("/", read, methods=["POST"])])

if __name__ == "__main__":
    uvicorn_thread.serve(app)
