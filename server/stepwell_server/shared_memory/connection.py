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

import structlog
from stepwell_core.errors import Conflict, InvalidInput, NoSharedMemory
from stepwell_core.layout import Arenas, Layout
from stepwell_core.placement import extent, place
from stepwell_core.store import Store, Version

from stepwell_server import drain
from stepwell_server.pulls import Pulls
from stepwell_server.shared_memory.regions import Region, RegionArenas
from stepwell_server.staging import Staging

EXTENSION = "stepwell.memory"
"""`scope["extensions"][EXTENSION]` is the connection's `ConnectionMemory`."""

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
"""File descriptors have to travel with bytes, and these mean nothing to any HTTP client."""

MAX_HELD = 4
"""Versions that one connection may hold at once: a view, and a pull inside it."""


log = structlog.get_logger("stepwell")


class _Hold:
    """A version that a worker reads in memory; one of its model's `Pulls`.

    How fast it is read nobody knows, only since when. Whoever has it for long loses nothing: it is
    abandoned, which costs the server a new buffer, and the worker reads on.
    """

    rate = float("inf")

    def __init__(self, version: Version, store: Store, pulls: Pulls) -> None:
        self._version: Version | None = version
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._end = pulls.begin(self, self._give_back)

    def begin(self) -> None:
        """Say that it begins."""
        self._begun = self._loop.time()
        self._is_abandoned = False

    @property
    def is_slow(self) -> bool:
        """Whether it would have to give way to others."""
        return self._loop.time() - self._begun > drain.FAIR_AFTER_S

    def abort(self) -> None:
        """Give way to others."""
        log.warning("hold_abandoned", seconds=round(self._loop.time() - self._begun, 1))
        self.abandon()

    def abandon(self) -> None:
        """Leave the buffer to the worker, if it has not let go of it yet."""
        self._is_abandoned = True
        self.let_go()

    def let_go(self) -> None:
        """Give the version back, once."""
        if self._version is not None:
            self._end()

    def _give_back(self) -> None:
        version, self._version = self._version, None
        assert version is not None, "it ends once"
        if self._is_abandoned:
            self._store.abandon(version)
        else:
            self._store.release(version)


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
        self._held: dict[int, _Hold] = {}  # also those that were abandoned: the worker has them
        self._numbers: Iterator[int] = itertools.count(1)
        self._is_closed = False
        self.is_used = False

    async def new_gradient(self, model: str, layout: Layout, staging: Staging) -> Region:
        """Make the region for gradients of a model and send its descriptor; the older one goes.

        It counts in the budget for payloads on their way until nobody here reads it any more. A
        large one takes its time, on another thread.

        Raises:
            NoSharedMemory: There is no memory for it, or the connection has ended meanwhile.
        """
        if self._gradients.pop(model, None) is not None:
            await asyncio.sleep(0)  # then its bytes are back in the budget
        nbytes = extent(layout)
        lease = staging.try_take(nbytes)
        if lease is None:
            raise NoSharedMemory(
                f"Gradients in memory would take {nbytes} bytes more than half of what the server "
                "has for payloads on their way; send them instead"
            )
        with lease:
            region = await asyncio.to_thread(Region, nbytes, is_writable_elsewhere=True)
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

    def keep(
        self, version: Version, store: Store, pulls: Pulls, known: Sequence[int]
    ) -> tuple[int, Region]:
        """Hold a version for the worker until it lets go of it, or the connection ends.

        It is abandoned, as at the connection's end, if it is old and others need its place.

        Args:
            version: Held already; given back in any case, sooner or later.
            store: Where to give it back.
            pulls: Of the same model.
            known: Serials of the regions that the worker has mapped; others are sent.

        Returns:
            A number for `let_go`, and the region that the version lies in.

        Raises:
            NoSharedMemory: The version does not lie in a region, or the connection has ended.
            Conflict: The connection holds as many versions as it may.
        """
        try:
            self._check_open()
            arenas = version.arenas
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
        self._held[number] = _Hold(version, store, pulls)
        return number, arenas.region

    def let_go(self, number: int) -> None:
        """Give back a version; one that was given back before is no error."""
        held = self._held.pop(number, None)
        if held is not None:
            held.let_go()

    def close(self) -> None:
        """Let go of everything: the connection has ended.

        The worker may live on and go on reading, so what it held is never written again.
        """
        self._is_closed = True
        self._gradients.clear()
        while self._held:
            _, held = self._held.popitem()
            held.abandon()

    def _check_open(self) -> None:
        if self._is_closed:
            raise NoSharedMemory("The connection has ended")

    def send(self, region: Region) -> None:
        """Send a region's descriptor, before the answer to the present request.

        Raises:
            NoSharedMemory: It cannot be sent now, or the connection has ended.
        """
        self._check_open()
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
