"""What the servers and proxies of these tests are: a listener, and a thread for each connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self

DEADLINE_S = 30.0
TURN_S = 0.05
"""How often a thread that waits looks whether it is over."""


class Listener:
    """A context manager: listens inside the block, and then all its threads have ended.

    A subclass says in `serve` what is done with a connection.

    Args:
        listening: On which it listens; a free port of this machine by default.

    Attributes:
        port: Where it listens, if that is a port.
        is_over: Whether the block has ended, and threads are to end.
    """

    def __init__(self, listening: socket.socket | None = None) -> None:
        self._listener = listening or socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TURN_S)
        self.port = self._listener.getsockname()[1] if listening is None else 0
        self.is_over = False
        self._threads = [threading.Thread(target=self._accept)]

    def serve(self, client: socket.socket) -> None:
        """Do what is to be done with a connection, and close it; in a thread of its own."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.is_over = True
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._listener.close()

    def _accept(self) -> None:
        while not self.is_over:
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self.serve, args=(client,))
                self._threads.append(thread)
                thread.start()
