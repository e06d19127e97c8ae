"""The same-host transport, client side: gradients and parameters in memory that the server sees.

A worker on the server's host writes its gradient into a region that the server reads, and reads
the parameters where the server keeps them. Calls that can go that way say so (`Call.shares`); the
others, and all of them where there is no such memory, go over the wire with the same result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stepwell_core.errors import NoSharedMemory, NotFound, StepwellError
from stepwell_core.layout import Arenas, Array, Layout, byte_views
from stepwell_core.placement import extent, place

from stepwell.calls import Answer, Call, Shares, model_path, required
from stepwell.destinations import InPlace
from stepwell.endpoint import Endpoint
from stepwell.errors import ConnectionFailed, TransportError
from stepwell.memory_connection import MemoryConnection

LEAST_BYTES = 256 * 1024
"""Smaller payloads are as fast over the wire, and cost no regions."""

RETRY_S = 5.0
"""How long the wire is used before memory is tried again."""

MAX_MAPPED = 8
"""Regions of parameters that stay mapped; a server uses five a model at most."""


class SharedMemory:
    """What one worker shares with a server on its host. Not thread-safe; for one process.

    Args:
        endpoint: The server.
        model: Name of the model.
        layout: Of the model.
        is_wanted: False: nothing goes this way.
    """

    def __init__(
        self, endpoint: Endpoint, model: str, layout: Layout, *, is_wanted: bool = True
    ) -> None:
        self._endpoint = endpoint
        self._layout = layout
        self._path_of_model = model_path(model, "memory")
        self._is_wanted = is_wanted and endpoint.is_local
        self._path = ""
        self._instance = ""
        self._tried_at = -RETRY_S
        self._connection: MemoryConnection | None = None
        self._region: memoryview | None = None
        self._parameters: dict[int, Arenas] = {}
        self._pid = os.getpid()

    def serves(self, call: Call) -> bool:
        """Whether a call should be tried this way."""
        if call.shares is None or not self._is_wanted or self._pid != os.getpid():
            return False
        if self._connection is None and time.monotonic() - self._tried_at < RETRY_S:
            return False
        return self._layout.nbytes >= LEAST_BYTES or self._is_asked_for(call)

    def _is_asked_for(self, call: Call) -> bool:
        return self._region is not None or isinstance(call.destination, InPlace)

    @property
    def is_found(self) -> bool:
        """Whether it is known where the server's socket is."""
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
        try:
            connection = self._connected()
        except (OSError, NoSharedMemory, NotFound, TransportError):
            self._give_up()
            return None
        try:
            if call.shares is Shares.GRADIENTS:
                return self._push(connection, call)
            return self._pull(connection, call)
        except (NoSharedMemory, NotFound):
            self._give_up()
            return None
        except OSError as error:
            self.close()
            raise ConnectionFailed(
                f"The connection to the server's Unix socket broke ({type(error).__name__})"
            ) from error
        except TransportError:
            self.close()
            raise

    def gradient_buffer(self) -> dict[str, Array] | None:
        """Return the tensors of a gradient, as writable views; None if there is no such memory.

        Pushed as they are, they are copied nowhere.
        """
        try:
            region = self._gradients(self._connected())
        except (OSError, NoSharedMemory, NotFound, TransportError):
            self._give_up()
            return None
        return self._layout.views(place(self._layout, region))

    def close(self) -> None:
        """Let go of everything; views stay readable, and are nobody else's any more."""
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()
        self._connection = self._region = None
        self._parameters = {}

    def _give_up(self) -> None:
        """Use the wire for a while."""
        self.close()
        self._path = ""
        self._tried_at = time.monotonic()

    def _connected(self) -> MemoryConnection:
        if self._connection is None:
            connection = MemoryConnection(self._endpoint, self._path)
            try:
                # A port that is forwarded from elsewhere is local, and its server is not.
                if connection.ask("GET", "/v1").get("instance") != self._instance:
                    raise NoSharedMemory("Another server listens at the socket")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    # Gradients

    def _gradients(self, connection: MemoryConnection) -> memoryview:
        if self._region is None:
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
        return Answer(connection.ask(call.method, call.path, {**header, "memory": True}))

    # Parameters

    def _pull(self, connection: MemoryConnection, call: Call) -> Answer:
        known = "&".join(f"known={serial}" for serial in self._parameters)
        answer = connection.ask("POST", f"{self._path_of_model}/parameters?{known}")
        arenas = self._mapped(connection, required(answer, "region"), required(answer, "bytes"))
        target = f"{self._path_of_model}/parameters/{required(answer, 'held')}"
        destination = call.destination
        if isinstance(destination, InPlace):
            destination.adopt(self._layout, arenas, lambda: self._let_go(connection, target))
        else:
            fill(destination.begin(self._layout), byte_views(arenas), destination.note)
            connection.tell("DELETE", target)
        return Answer(answer, destination.tensors(), self._layout)

    def _mapped(self, connection: MemoryConnection, serial: int, nbytes: int) -> Arenas:
        if serial not in self._parameters:
            memory = connection.take_region(nbytes, is_writable=False)
            while len(self._parameters) >= MAX_MAPPED:
                del self._parameters[next(iter(self._parameters))]
            self._parameters[serial] = place(self._layout, memory)
        return self._parameters[serial]

    def _let_go(self, connection: MemoryConnection, target: str) -> None:
        if connection is self._connection and self._pid == os.getpid():
            try:
                connection.tell("DELETE", target)
            except OSError:  # the server lets go of it by itself
                self.close()


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
