"""An ASGI application on a free port, in a thread of a program that ends with its stdin."""

from __future__ import annotations

import socket
import threading
from typing import Any

import uvicorn

from benchmarks import turns


def serve(app: Any) -> None:
    """Serve as `uvicorn` does by default, with uvloop and httptools, until stdin ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, args=([listener],), daemon=True).start()
    turns.take({}, port=listener.getsockname()[1])
    server.should_exit = True
