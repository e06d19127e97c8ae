"""A TCP proxy that makes faults, by a seeded schedule: what networks do, as often as one likes.

latency       each piece waits a little
slow          so many bytes a second
cut           the connection ends after so many bytes, towards the server or towards the client
reset         the same, with an RST instead of a FIN
lost answer   what the client sends arrives; what the server answers does not, then an RST
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass

PIECE_BYTES = 1 << 16
LINGER_NOTHING = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    """What happens to one connection.

    Attributes:
        latency_s: Of each piece, both ways.
        bytes_per_s: Both ways; None is as fast as it goes.
        cut_up: Bytes towards the server after which it ends; None never.
        cut_down: Bytes towards the client after which it ends; None never.
        resets: Whether it ends with an RST.
    """

    latency_s: float = 0.0
    bytes_per_s: float | None = None
    cut_up: int | None = None
    cut_down: int | None = None
    resets: bool = False

    @property
    def name(self) -> str:
        """What kind of fault it is, for counting."""
        if self.cut_down == 0:
            return "lost answer"
        if self.cut_up is not None or self.cut_down is not None:
            return "reset" if self.resets else "cut"
        if self.bytes_per_s is not None:
            return "slow"
        return "latency" if self.latency_s else "none"


NONE = Fault()


def any_fault(rng: random.Random, largest: int = 60_000) -> Fault:
    """Return the fault of the next connection; half of all have none."""
    kind = rng.choice(["none"] * 6 + ["latency", "slow", "up", "down", "reset up", "lost"])
    size = int(rng.expovariate(1 / largest)) + 1
    return {
        "none": NONE,
        "latency": Fault(latency_s=rng.uniform(0.001, 0.02)),
        "slow": Fault(bytes_per_s=rng.uniform(1e6, 1e7)),
        "up": Fault(cut_up=size),
        "down": Fault(cut_down=size),
        "reset up": Fault(cut_up=size, resets=True),
        "lost": Fault(cut_down=0, resets=True),
    }[kind]


class FaultyProxy:
    """Listens on a loopback port of its own and passes on to another; a context manager.

    Attributes:
        target: Where to; may be changed while it runs.
        next_fault: Returns the fault of the next connection; may be changed while it runs.
        counts: Connections by kind of fault.
        port: Where it listens.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.target = target
        self.next_fault = lambda: any_fault(rng)
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        assert self._is_ready.wait(10), "the proxy listens"
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(lambda loop, context: None)  # broken pipes are its trade
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self.port)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._is_ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self.next_fault()
        self.counts[fault.name] += 1
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _end(writer, resets=True)
            return
        ways = [
            asyncio.ensure_future(_pass_on(reader, up_writer, fault, fault.cut_up)),
            asyncio.ensure_future(_pass_on(up_reader, writer, fault, fault.cut_down)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            _end(writer, resets=fault.resets)
            _end(up_writer, resets=fault.resets)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault, left: int | None
) -> None:
    """Pass bytes on until one side ends or the fault comes."""
    while piece := await reader.read(PIECE_BYTES):
        if fault.latency_s:
            await asyncio.sleep(fault.latency_s)
        if fault.bytes_per_s is not None:
            await asyncio.sleep(len(piece) / fault.bytes_per_s)
        if left is not None:
            piece, left = piece[:left], left - len(piece)
        if piece:
            writer.write(piece)
            await writer.drain()
        if left is not None and left <= 0:
            return


def _end(writer: asyncio.StreamWriter, *, resets: bool) -> None:
    sock = writer.get_extra_info("socket")
    if resets and sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOTHING)
        writer.transport.abort()
    else:
        writer.close()
