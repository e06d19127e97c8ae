"""The same-host transport, client side: gradients and parameters in memory that the server sees.

A worker on the server's host writes its gradient into a region that the server reads, and reads
the parameters where the server keeps them. Calls that can go that way say so (`Call.shares`); the
others, and all of them where there is no such memory, go over the wire with the same result.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np
from stepwell_core.errors import (
    InvalidArgument,
    NoSharedMemory,
    NotFound,
    StepwellError,
    shown,
)
from stepwell_core.layout import Arenas, Array, Layout, byte_views
from stepwell_core.placement import extent, place

from stepwell.calls import Answer, Call, Shares, model_path, required
from stepwell.destinations import InPlace, NewArrays
from stepwell.endpoint import Endpoint
from stepwell.errors import ConnectionFailed, TransportError
from stepwell.memory_connection import ConnectionBroke, MemoryConnection

LEAST_BYTES = 256 * 1024
"""Smaller payloads are as fast over the wire, and cost no regions."""

RETRY_S = 5.0
"""How long the wire is used before memory is tried again."""

MAX_MAPPED = 8
"""Regions of parameters that stay mapped; a server uses five a model at most."""


def check_transport(transport: str) -> str:
    """Return `transport`, which a client was given.

    Raises:
        InvalidArgument: It is neither "auto" nor "http".
    """
    if transport not in ("auto", "http"):
        raise InvalidArgument(f'`transport` is "auto" or "http". Received: {shown(transport)}')
    return transport


class SharedMemory:
    """What one worker shares with a server on its host; for one process. Thread-safe.

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
        self._is_wanted = transport == "auto" and endpoint.is_local and layout.nbytes >= LEAST_BYTES
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._path = ""
        self._instance = ""
        self._tried_at: float | None = None  # in vain
        self._connection: MemoryConnection | None = None
        self._region: memoryview | None = None
        self._is_lent = False  # the region, to the server, for a push that may not be settled yet
        self._parameters: dict[int, Arenas] = {}
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
        """Learn from what the server says of itself where its socket is."""
        path = self._endpoint.uds or about.get("memory_socket")
        self._path = path if isinstance(path, str) else ""
        self._instance = str(about.get("instance"))
        self._is_wanted = bool(self._path)

    def send(self, call: Call) -> Answer | None:
        """Make a call; None if it has to go over the wire, with nothing done.

        Raises:
            ConnectionFailed: The connection broke; the call may have had its effect.
            StepwellError: What the server says.
        """
        with self._lock:
            connection = self._connected()
            if connection is None:
                return None
            try:
                if call.shares is Shares.GRADIENTS:
                    return self._push(connection, call)
                return self._pull(connection, call)
            except (NoSharedMemory, NotFound):
                self.give_up()
                return None
            except ConnectionBroke as error:
                self._disconnect()
                raise ConnectionFailed(str(error)) from error
            except TransportError:
                self._disconnect()
                raise

    def gradient_buffer(self) -> dict[str, Array]:
        """Return the tensors of a gradient, as writable views; in plain memory if need be."""
        with self._lock:
            connection = self._connected() if self.is_usable else None
            try:
                if connection is not None:
                    return self._layout.views(place(self._layout, self._gradients(connection)))
            except (ConnectionBroke, NoSharedMemory, NotFound, TransportError):
                self.give_up()
            self._own = self._own or self._layout.new_arenas()
            return self._layout.views(self._own)

    def close(self) -> None:
        """Let go of everything; arrays stay readable, and are nobody else's any more."""
        with self._lock:
            self._disconnect()
            self._own = None

    def _disconnect(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = self._region = None
        self._parameters = {}

    def give_up(self) -> None:
        """Let go of everything and use the wire for a while."""
        self._disconnect()
        self._path = ""
        self._tried_at = time.monotonic()

    def _connected(self) -> MemoryConnection | None:
        """Return the connection, made if need be; None if there can be none now."""
        if self._connection is None and self._path:
            try:
                self._connection = self._connect()
            except (ConnectionBroke, StepwellError):
                self.give_up()
        return self._connection

    def _connect(self) -> MemoryConnection:
        connection = MemoryConnection(self._endpoint, self._path)
        try:
            # A port that is forwarded from elsewhere is local, and its server is not.
            if connection.ask("GET", "/v1").get("instance") != self._instance:
                raise NoSharedMemory("Another server listens at the socket")
        except BaseException:
            connection.close()
            raise
        return connection

    # Gradients

    def _gradients(self, connection: MemoryConnection) -> memoryview:
        """Return the region to write the next gradient into."""
        if self._region is None or self._is_lent:
            self._region, self._is_lent = None, False
            answer = connection.ask("POST", f"{self._path_of_model}/gradients")
            nbytes = required(answer, "bytes")
            self._region = connection.take_region(nbytes, is_writable=True)
        return self._region

    def _push(self, connection: MemoryConnection, call: Call) -> Answer | None:
        header = call.header or {}
        names = header.get("tensors")
        selection = self._layout if names is None else self._layout.select(names)
        dtype = header["dtype"]
        region = self._gradients(connection)
        if extent(selection, dtype) > len(region):
            return None
        targets = place(selection, region, dtype)
        copy(
            [
                targets[segment.tensor.dtype][segment.start : segment.stop].view(np.uint8)
                for segment in selection.segments.values()
            ],
            [_bytes(view) for view in call.payload],
            region,
        )
        self._is_lent = True
        answer = connection.ask(call.method, call.path, {**header, "memory": True})
        self._is_lent = answer.get("outcome") == "waiting"
        return Answer(answer)

    # Parameters

    def _pull(self, connection: MemoryConnection, call: Call) -> Answer:
        path = f"{self._path_of_model}/parameters"
        query = urlencode({**call.query, "known": list(self._parameters)}, doseq=True)
        answer = connection.ask("POST", f"{path}?{query}" if query else path)
        etag = required(answer, "etag")
        target = f"{path}/{required(answer, 'held')}"
        if call.etag == etag:
            connection.tell("DELETE", target)
            return Answer(answer, is_current=True)
        arenas = self._mapped(connection, required(answer, "region"), required(answer, "bytes"))
        destination = call.destination or NewArrays()
        if isinstance(destination, InPlace):
            destination.adopt(self._layout, arenas, lambda: self._let_go(connection, target))
        else:
            try:
                fill(destination.begin(self._layout), byte_views(arenas), destination.note)
            finally:
                connection.tell("DELETE", target)
        return Answer(answer, destination.tensors(), etag)

    def _mapped(self, connection: MemoryConnection, serial: int, nbytes: int) -> Arenas:
        if serial not in self._parameters:
            memory = connection.take_region(nbytes, is_writable=False)
            while len(self._parameters) >= MAX_MAPPED:
                del self._parameters[next(iter(self._parameters))]
            self._parameters[serial] = place(self._layout, memory)
        return self._parameters[serial]

    def _let_go(self, connection: MemoryConnection, target: str) -> None:
        with self._lock:
            if connection is self._connection and self._pid == os.getpid():
                try:
                    connection.tell("DELETE", target)
                except ConnectionBroke:  # then the server lets go of it by itself
                    self._disconnect()


def copy(targets: Sequence[Array], sources: Sequence[Array], region: memoryview) -> None:
    """Copy each source to its target, in `region`, unless it lies there already.

    Sources that lie elsewhere in the region are read before anything is written.
    """
    begin = _address(_bytes(region))
    moves = [(t, s) for t, s in zip(targets, sources, strict=True) if _address(t) != _address(s)]
    kept = [(t, s.copy() if begin <= _address(s) < begin + len(region) else s) for t, s in moves]
    for target, source in kept:
        np.copyto(target, source)


def fill(views: Sequence[memoryview], sources: Sequence[memoryview], note: Any) -> None:
    """Fill views one after the other with the bytes of sources, and say how many are missing."""
    missing = sum(map(len, views))
    source, rest = memoryview(b""), list(sources)
    for view in views:
        while view:
            source = source or rest.pop(0)
            count = min(len(view), len(source))
            np.copyto(_bytes(view[:count]), _bytes(source[:count]))
            view, source = view[count:], source[count:]
            missing -= count
        note(missing)


def _bytes(view: memoryview) -> Array:
    return np.asarray(view).view(np.uint8)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
