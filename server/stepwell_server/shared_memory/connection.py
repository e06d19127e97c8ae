"""What one connection over the Unix socket shares with its worker.

It has a region for gradients, one a model, and holds versions that the worker reads. The connection
is what they belong to: nobody else can name them, and when it ends they are let go of.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepwell_core.errors import Conflict, InvalidInput, NoSharedMemory
from stepwell_core.layout import Arenas, Layout
from stepwell_core.placement import extent, place
from stepwell_core.store import Store, Version

from stepwell_server.shared_memory.regions import Region, RegionArenas
from stepwell_server.staging import Staging

EXTENSION = "stepwell.memory"
"""`scope["extensions"][EXTENSION]` is the connection's `ConnectionMemory`."""

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
"""File descriptors have to travel with bytes, and these mean nothing to any HTTP client."""

MAX_HELD = 4
"""Versions that one connection may hold at once: a view, and a pull inside it."""


@dataclass(frozen=True)
class _Held:
    version: Version
    store: Store


class ConnectionMemory:
    """What a connection shares.

    Args:
        transport: Of the connection, over a Unix socket.

    Attributes:
        is_used: Whether the worker was sent a region, which it would lose with the connection.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._gradients: dict[str, Region] = {}  # by model
        self._held: dict[int, _Held] = {}
        self._numbers: Iterator[int] = itertools.count(1)
        self._is_closed = False
        self.is_used = False

    def new_gradient(self, model: str, layout: Layout, staging: Staging) -> Region:
        """Make the region for gradients of a model and send its descriptor; the older one goes.

        It counts in the budget for payloads on their way until nobody here reads it any more.

        Raises:
            NoSharedMemory: There is no memory for it.
        """
        self._gradients.pop(model, None)
        nbytes = extent(layout)
        lease = staging.try_take(nbytes)
        if lease is None:
            raise NoSharedMemory(
                f"Gradients in memory would take {nbytes} bytes more than half of what the server "
                "has for payloads on their way; send them instead"
            )
        with lease:
            region = Region(nbytes, is_writable_elsewhere=True)
            region.lend(lease)
        self.send(region)
        self._gradients[model] = region
        return region

    def gradient(self, model: str, selection: Layout, dtype: str) -> Arenas:
        """Return what the worker wrote, where it wrote it; no copy.

        The memory stays until the arenas are dropped, whatever becomes of the connection.

        Args:
            model: Its name.
            selection: The tensors that the gradient has.
            dtype: Of its elements, one of `layout.PAYLOAD_DTYPES`.

        Raises:
            NoSharedMemory: The connection has no region for that model.
            InvalidInput: The region is too small for such a gradient.
        """
        region = self._gradients.get(model)
        if region is None:
            raise NoSharedMemory(
                f"This connection has no memory for gradients of model {model!r}; ask for it first"
            )
        needed = extent(selection, dtype)
        if needed > region.nbytes:
            raise InvalidInput(
                f"The region for gradients of model {model!r} has {region.nbytes} bytes. Received: "
                f"a gradient of {dtype} with {needed}",
                expected=region.nbytes,
                received=needed,
            )
        return place(selection, region.memory, dtype)

    def keep(self, version: Version, store: Store, known: Sequence[int]) -> tuple[int, Region]:
        """Hold a version for the worker until it lets go of it, or the connection ends.

        Args:
            version: Held already; given back in any case, sooner or later.
            store: Where to give it back.
            known: Serials of the regions that the worker has mapped; others are sent.

        Returns:
            A number for `let_go`, and the region that the version lies in.

        Raises:
            NoSharedMemory: The version does not lie in a region, or the connection has ended.
            Conflict: The connection holds as many versions as it may.
        """
        try:
            arenas = version.arenas
            if self._is_closed:
                raise NoSharedMemory("The connection has ended")
            if not isinstance(arenas, RegionArenas):
                raise NoSharedMemory("These parameters are not in shared memory; pull them instead")
            if len(self._held) >= MAX_HELD:
                raise Conflict(f"A connection holds {MAX_HELD} versions at most; let go of one")
            if arenas.region.serial not in known:
                self.send(arenas.region)
        except BaseException:
            store.release(version)
            raise
        number = next(self._numbers)
        self._held[number] = _Held(version, store)
        return number, arenas.region

    def let_go(self, number: int) -> None:
        """Give back a version; one that was given back before is no error."""
        held = self._held.pop(number, None)
        if held is not None:
            held.store.release(held.version)

    def close(self) -> None:
        """Let go of everything: the connection has ended.

        The worker may live on and go on reading, so what it held is never written again.
        """
        self._is_closed = True
        self._gradients.clear()
        while self._held:
            _, held = self._held.popitem()
            held.store.abandon(held.version)

    def send(self, region: Region) -> None:
        """Send a region's descriptor, before the answer to the present request.

        Raises:
            NoSharedMemory: It cannot be sent now.
        """
        wire = self._transport.get_extra_info("socket")
        try:
            if self._transport.is_closing() or self._transport.get_write_buffer_size():
                raise BlockingIOError(0, "the connection is busy")
            with socket.socket(fileno=os.dup(wire.fileno())) as own:
                sent = socket.send_fds(own, [INTERIM], [region.descriptor])
            if sent != len(INTERIM):
                self._transport.abort()
                raise BrokenPipeError(0, "the connection is full")
        except OSError as error:
            raise NoSharedMemory(f"A descriptor could not be sent ({error.strerror})") from None
        self.is_used = True
