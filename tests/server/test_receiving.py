"""The receiver that stands in for the HTTP protocol, by itself."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import msgpack
import pytest
from starlette.requests import ClientDisconnect
from stepwell_core import wire
from stepwell_core.errors import BodyTooSlow, MalformedMessage, PayloadSizeMismatch
from stepwell_server.receiving import BodyReceiver


class Owner(asyncio.Protocol):
    """The HTTP protocol, as far as a receiver knows it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append(("lost", exc))

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


class Bench:
    """A receiver whose decoder has seen the header of a message, and expects 8 bytes."""

    def __init__(self, left: int, size: int = 8) -> None:
        self.place = bytearray(size)
        self.owner, self.counted, self.ends = Owner(), [], []
        decoder = wire.Decoder()
        decoder.feed(msgpack.packb({}))
        decoder.receive([memoryview(self.place)])
        self.decoder = weakref.ref(decoder)
        self.receiver = BodyReceiver(
            self.owner, decoder, left, self.counted.append, lambda: self.ends.append(left)
        )
        self.waits = asyncio.ensure_future(self.receiver.wait())

    @classmethod
    async def begun(cls, left: int, size: int = 8) -> Bench:
        """Return one that is waited for."""
        bench = cls(left, size)
        await asyncio.sleep(0)
        return bench

    def come(self, data: bytes, most: int = 1 << 20) -> None:
        """Do what an event loop does when bytes have come."""
        while data:
            buffer = self.receiver.get_buffer(-1)
            count = min(len(buffer), len(data), most)
            assert count, "an empty buffer is an error to the event loop"
            buffer[:count] = data[:count]
            self.receiver.buffer_updated(count)
            data = data[count:]


BODY = msgpack.packb(b"12345678")


@pytest.mark.parametrize("most", [1, 3, 100])
def test_bytes_come_to_their_place_in_pieces_of_any_size(most):
    """The last one ends it, once."""

    async def receive() -> Bench:
        bench = await Bench.begun(len(BODY))
        bench.come(BODY, most)
        await bench.waits
        return bench

    bench = asyncio.run(receive())

    assert bench.place == b"12345678"
    assert (sum(bench.counted), bench.ends) == (len(BODY), [len(BODY)])


def test_a_receiver_never_asks_for_more_than_the_body_has_left():
    """What is behind the body is another request."""

    async def receive() -> list[int]:
        bench, sizes = await Bench.begun(7), []
        for byte in BODY[:6]:
            sizes.append(len(bench.receiver.get_buffer(-1)))
            bench.come(bytes([byte]))
        bench.receiver.fail(ClientDisconnect())
        sizes.append(len(bench.receiver.get_buffer(1 << 20)))
        with pytest.raises(ClientDisconnect):
            await bench.waits
        return sizes

    sizes = asyncio.run(receive())

    assert sizes[2:] == [5, 4, 3, 2, 1]


def test_a_payload_of_no_bytes_still_has_empty_bins_to_read():
    """There is no place for the next byte then, and a buffer may not be empty."""

    async def receive() -> Bench:
        bench = await Bench.begun(4, size=0)
        bench.come(msgpack.packb(b"") * 2)
        await bench.waits
        return bench

    assert asyncio.run(receive()).ends == [4]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (BODY + b"\xc4\x01x", PayloadSizeMismatch),
        (BODY + b"x", MalformedMessage),
        (b"\xc4\x09123456789", PayloadSizeMismatch),
        (b"\xff" + BODY, MalformedMessage),
    ],
    ids=repr,
)
@pytest.mark.parametrize("most", [1, 100])
def test_a_wrong_body_is_told_at_once_and_read_to_its_end(body, error, most):
    """The handler hears of it before the end; the client is still sending."""

    async def receive() -> Bench:
        bench = await Bench.begun(len(body) + 200_000)
        bench.come(body, most)
        with pytest.raises(error):
            await bench.waits
        assert bench.ends == []
        bench.come(bytes(200_000))
        return bench

    assert len(asyncio.run(receive()).ends) == 1


def test_nothing_is_written_to_the_buffers_of_a_handler_that_was_cancelled_or_told():
    """They may be used for something else by then."""

    async def receive(is_cancelled: bool) -> bytes:
        bench = await Bench.begun(len(BODY))
        bench.come(BODY[:4])
        if is_cancelled:
            bench.waits.cancel()
        else:
            bench.receiver.fail(BodyTooSlow("x"))
        with pytest.raises((asyncio.CancelledError, BodyTooSlow)):
            await bench.waits
        assert bench.decoder() is None, "it would hold the buffers"
        bench.come(BODY[4:])
        assert len(bench.ends) == 1
        return bytes(bench.place)

    assert asyncio.run(receive(True)) == asyncio.run(receive(False)) == b"12" + bytes(6)


def test_what_concerns_the_connection_is_passed_on_to_its_owner():
    """The receiver is the transport's protocol for a while, so it is told."""

    async def lose() -> list[Any]:
        bench = await Bench.begun(3)
        bench.receiver.pause_writing()
        bench.receiver.resume_writing()
        assert not bench.receiver.eof_received()
        bench.receiver.connection_lost(None)
        bench.receiver.fail(ClientDisconnect())
        with pytest.raises(ClientDisconnect):
            await bench.waits
        return bench.owner.calls

    assert asyncio.run(lose()) == ["pause", "resume", ("lost", None)]
