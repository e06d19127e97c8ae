"""The same-host transport, client side: gradients and parameters in memory that the server sees.

A worker on the server's host writes its gradient into a region that the server reads, and reads
the parameters where the server keeps them. Calls that can go that way say so (`Call.shares`); the
others, and all of them where there is no such memory, go over the wire with the same result.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from stepwell_core.errors import NoSharedMemory, NotFound, StepwellError
from stepwell_core.layout import Arenas, Array, Layout, byte_views
from stepwell_core.placement import extent, place

from stepwell.calls import (
    Answer,
    Call,
    Shares,
    check_protocol,
    expected_payload,
    model_path,
    required,
)
from stepwell.copies import as_bytes, copy, fill
from stepwell.destinations import InPlace, NewArrays
from stepwell.endpoint import Endpoint
from stepwell.errors import TransportError
from stepwell.memory_connection import MemoryConnection
from stepwell.transport.failures import of_socket

LEAST_BYTES = 256 * 1024
"""Smaller payloads are as fast over the wire, and cost no regions."""

RETRY_S = 5.0
"""How long the wire is used before memory is tried again."""

MAX_HELD = 4
"""Versions that the server lets a connection hold; views beyond that come over the wire."""

MAX_MAPPED, MAX_MAPPED_LARGE, LARGE_BYTES = 5, 3, 1 << 30
"""Regions of parameters that stay mapped: as many as a server uses for a model of that size."""

log = logging.getLogger("stepwell")


@dataclass(frozen=True, eq=False)
class _Held:
    """A version that the server holds for this worker."""

    connection: MemoryConnection
    target: str  # what to DELETE when it was read
    fields: Mapping[str, Any]
    arenas: Arenas


class SharedMemory:
    """What one worker shares with a server on its host; for one process. Thread-safe.

    A call that comes while another one is under way goes over the wire.

    Args:
        endpoint: The server.
        model: Name of the model.
        layout: Of the model.
        transport: "auto", or "http": nothing goes this way.
    """

    def __init__(self, endpoint: Endpoint, model: str, layout: Layout, transport: str) -> None:
        self._endpoint = endpoint
        self._layout = layout
        self._path_of_model = model_path(model, "memory")
        is_possible = sys.platform == "linux" and endpoint.is_local
        self._is_wanted = transport == "auto" and is_possible and layout.nbytes >= LEAST_BYTES
        self._pid = os.getpid()
        self._lock = threading.Lock()  # around everything that is said over the connection
        self._path = ""
        self._instance = ""
        self._tried_at: float | None = None  # in vain
        self._connection: MemoryConnection | None = None
        self._close: Callable[[], object] = _nothing  # the connection
        self._region: memoryview | None = None
        self._is_lent = False  # the region, to the server, for a push that may not be settled yet
        self._mapped: dict[int, Arenas] = {}
        self._held: set[_Held] = set()
        self._ended: deque[_Held] = deque()  # of which the server was not told yet
        self._own: Arenas | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it is worth trying."""
        if not self._is_wanted or self._pid != os.getpid():
            return False
        return self._tried_at is None or time.monotonic() - self._tried_at >= RETRY_S

    @property
    def is_found(self) -> bool:
        """Whether it is known where the server's socket is; else `find` comes first."""
        return bool(self._path)

    def find(self, about: Mapping[str, Any]) -> None:
        """Learn from what the server says of itself where its socket is, if it has one.

        Raises:
            UnexpectedAnswer: It speaks another protocol.
        """
        check_protocol(about)
        path = about.get("memory_socket")
        self._path = (self._endpoint.uds or path) if isinstance(path, str) else ""
        self._instance = str(about.get("instance"))
        self._is_wanted = bool(self._path)

    def send(self, call: Call) -> Answer | None:
        """Make a call; None if it has to go over the wire, with nothing done.

        Raises:
            TransportError: The connection broke; the call may have had its effect.
            StepwellError: What the server says.
        """
        with self._alone() as is_alone:
            found = self._exchange(call) if is_alone else None
        if not isinstance(found, _Held):
            return found
        # What is held lies still, so this needs no lock; and a callback may make calls of its own.
        destination = call.destination or NewArrays()
        if isinstance(destination, InPlace):
            destination.adopt(self._layout, found.arenas, lambda: self._let_go(found))
        else:
            try:
                fill(destination.begin(self._layout), byte_views(found.arenas), destination.note)
            finally:
                self._let_go(found)
        return Answer(found.fields, destination.tensors(), required(found.fields, "etag"))

    def gradient_buffer(self) -> dict[str, Array]:
        """Return the tensors of a gradient, as writable views; in plain memory if need be."""
        with self._alone() as is_alone:
            connection = self._connected() if is_alone and self.is_usable else None
            try:
                if connection is not None:
                    return self._layout.views(place(self._layout, self._gradients(connection)))
            except (OSError, StepwellError) as error:
                self.give_up(error)
        self._own = self._own or self._layout.new_arenas()
        return self._layout.views(self._own)

    def interrupt(self) -> None:
        """End what another thread waits for, and with it the connection; its call fails soon."""
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def close(self) -> None:
        """Let go of everything; arrays stay readable, and are nobody else's any more."""
        if self._pid != os.getpid():  # of the parent; the lock may be held by a thread of it
            return
        self.interrupt()
        with self._lock:
            self._disconnect()
            self._own = None

    def give_up(self, reason: Exception) -> None:
        """Let go of everything and use the wire for a while."""
        log.info("Tensors go over the wire: %s", reason)
        self._disconnect()
        self._path = ""
        self._tried_at = time.monotonic()

    def _disconnect(self) -> None:
        self._close()
        self._close = _nothing
        self._connection = self._region = None
        self._is_lent = False
        self._mapped = {}
        self._held = set()

    def _connected(self) -> MemoryConnection | None:
        """Return the connection, made if need be; None if there can be none now."""
        if self._connection is not None and not self._connection.is_usable:
            self._disconnect()
        if self._connection is None and self._path:
            try:
                self._connection = MemoryConnection(self._endpoint, self._path, self._instance)
                self._close = weakref.finalize(self, self._connection.close)
            except (OSError, StepwellError) as error:
                self.give_up(error)
        return self._connection

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Give whether no other call is under way, and then see to it that none begins."""
        is_alone = self._lock.acquire(blocking=False)
        try:
            yield is_alone
        finally:
            if is_alone:
                self._lock.release()
                self._tell_of_ended()

    def _exchange(self, call: Call) -> Answer | _Held | None:
        connection = self._connected()
        if connection is None:
            return None
        try:
            if call.shares is Shares.GRADIENTS:
                return self._push(connection, call)
            return self._hold(connection, call)
        except (NoSharedMemory, NotFound) as error:
            self.give_up(error)
            return None
        except OSError as error:
            self._disconnect()
            where = f"the Unix socket {self._path}"
            raise of_socket(error, where, is_connected=True, was_sent=True) from error
        except TransportError:
            self._disconnect()
            raise

    # Gradients

    def _gradients(self, connection: MemoryConnection) -> memoryview:
        """Return the region to write the next gradient into."""
        if self._region is None or self._is_lent:
            self._region, self._is_lent = None, False
            answer = connection.ask("POST", f"{self._path_of_model}/gradients")
            nbytes = required(answer, "bytes")
            if nbytes < extent(self._layout):
                raise NoSharedMemory("The model has another layout now")
            self._region = connection.take_region(nbytes, is_writable=True)
        return self._region

    def _push(self, connection: MemoryConnection, call: Call) -> Answer | None:
        header = call.header or {}
        names, dtype = header.get("tensors"), header["dtype"]
        selection = self._layout if names is None else self._layout.select(names)
        region = self._gradients(connection)
        if extent(selection, dtype) > len(region):
            return None
        arenas = place(selection, region, dtype)
        targets = [
            as_bytes(arenas[segment.tensor.dtype][segment.start : segment.stop])
            for segment in selection.segments.values()
        ]
        copy(call.payload, targets, region)
        self._is_lent = True
        answer = connection.ask(call.method, call.path, {**header, "memory": True})
        self._is_lent = answer.get("outcome") == "waiting"
        return Answer(answer)

    # Parameters

    def _hold(self, connection: MemoryConnection, call: Call) -> Answer | _Held | None:
        if len(self._held) >= MAX_HELD:
            return None
        path = f"{self._path_of_model}/parameters"
        query = urlencode({**call.query, "known": list(self._mapped)}, doseq=True)
        fields = connection.ask("POST", f"{path}?{query}" if query else path)
        try:
            expected_payload(call, fields)
            serial, nbytes = required(fields, "region"), required(fields, "bytes")
            arenas = self._arenas(connection, serial, nbytes)
            held = _Held(connection, f"{path}/{required(fields, 'held')}", fields, arenas)
        except BaseException:
            self._disconnect()  # the server holds what nobody could name
            raise
        self._held.add(held)
        if call.etag is not None and call.etag == required(fields, "etag"):
            self._ended.append(held)
            return Answer(fields, is_current=True)
        return held

    def _arenas(self, connection: MemoryConnection, serial: int, nbytes: int) -> Arenas:
        """Return the parameters in a region, which is mapped once."""
        if serial not in self._mapped:
            memory = connection.take_region(nbytes, is_writable=False)
            is_large = self._layout.nbytes >= LARGE_BYTES
            while len(self._mapped) >= (MAX_MAPPED_LARGE if is_large else MAX_MAPPED):
                del self._mapped[next(iter(self._mapped))]
            self._mapped[serial] = place(self._layout, memory)
        return self._mapped[serial]

    def _let_go(self, held: _Held) -> None:
        self._ended.append(held)
        self._tell_of_ended()

    def _tell_of_ended(self) -> None:
        """Tell the server what was read to its end; whoever talks to it does that afterwards."""
        while self._ended and self._lock.acquire(blocking=False):
            try:
                if self._ended:
                    self._tell(self._ended.popleft())
            finally:
                self._lock.release()

    def _tell(self, held: _Held) -> None:
        if held not in self._held or not held.connection.is_usable:
            return  # the connection ended, and with it the hold
        self._held.discard(held)
        try:
            held.connection.tell("DELETE", held.target)
        except OSError:  # as if it had ended before
            self._disconnect()


def _nothing() -> None:
    """Close what was never opened."""
