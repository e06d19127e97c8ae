"""Makes small models share memory too, sees which calls did, and can lose the answers to pushes."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

from stepwell import shared_memory
from stepwell.calls import Shares
from stepwell.memory_connection import MemoryConnection
from stepwell.shared_memory import SharedMemory

from tests.servers import ServerProcess


@dataclass
class Witness:
    """What went through memory, and what was to and went over the wire."""

    shared: list[Shares] = field(default_factory=list)
    sent: list[Shares] = field(default_factory=list)


@contextlib.contextmanager
def witnessed() -> Iterator[Witness]:
    """Let models of any size share memory; give what sees whether they do."""
    witness = Witness()
    send = SharedMemory.send

    def seen(memory, call):
        answer = send(memory, call)
        (witness.sent if answer is None else witness.shared).append(call.shares)
        return answer

    with (
        mock.patch.object(shared_memory, "LEAST_BYTES", 0),
        mock.patch.object(shared_memory, "RETRY_S", 0.0),
        mock.patch.object(SharedMemory, "send", seen),
    ):
        yield witness


class LosingConnections:
    """Breaks connections to the Unix socket in the middle of answers to pushes.

    Attributes:
        url: Of the server itself; what goes over the wire is not touched.
        lost: How many answers were lost.
    """

    MAX_BYTES = 200
    """All answers to pushes are longer."""

    def __init__(self, server: ServerProcess) -> None:
        self.url = server.url
        self.lost = 0
        self._answers = self._after_bytes = 0
        self._left: dict[MemoryConnection, int] = {}
        self._patches = contextlib.ExitStack()

    def lose_next_answer(self, after_bytes: int = 0, answers: int = 1) -> None:
        """Break the connection behind so many bytes of the next answers."""
        self._after_bytes, self._answers = min(after_bytes, self.MAX_BYTES), answers

    def __enter__(self) -> LosingConnections:
        ask, receive_into = MemoryConnection.ask, MemoryConnection.receive_into

        def asked(connection, method, target, header=None):
            if header is not None and self._answers:
                self._answers -= 1
                self._left[connection] = self._after_bytes
            return ask(connection, method, target, header)

        def received_into(connection, view):
            left = self._left.get(connection)
            if left is None:
                return receive_into(connection, view)
            connection._socket.recv(1, socket.MSG_PEEK)  # it has made the push
            if not left:
                self.lost += 1
                del self._left[connection]
                connection.interrupt()
                return 0
            count = receive_into(connection, view[:left])
            self._left[connection] = left - count
            return count

        self._patches.enter_context(mock.patch.object(MemoryConnection, "ask", asked))
        self._patches.enter_context(
            mock.patch.object(MemoryConnection, "receive_into", received_into)
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._patches.close()
