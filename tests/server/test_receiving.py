"""Receiving a body: the receiver by itself, then one contract over all the ways a body can come.

The contract runs with the extension and without it (as on another ASGI server), on both event
loops, with TLS and without: the same bytes give the same answers and the same state.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import msgpack
import pytest
from starlette.requests import ClientDisconnect
from stepwell_core import wire
from stepwell_core.errors import BodyTooSlow, MalformedMessage, PayloadSizeMismatch
from stepwell_core.layout import Layout, Tensor
from stepwell_server import deadlines
from stepwell_server.gate import Gate
from stepwell_server.http_protocol import StepwellProtocol
from stepwell_server.receiving import BodyReceiver

from tests import servers
from tests.server.calls import LAYOUT, Worker, create, filled, image, packed, payload
from tests.server.connections import Caller, chunked, request

LARGE = Layout([Tensor("w", (1_250_000,), "float32")])  # 5 MB, more than sockets buffer
HEALTH = request("/healthz", method="GET")


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


class Connections:
    """Counts the connections of a server; its end of one is waited for, not slept for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self._changed = 0, threading.Condition()
        made, lost = StepwellProtocol.connection_made, StepwellProtocol.connection_lost

        def on_made(protocol: StepwellProtocol, transport: asyncio.Transport) -> None:
            made(protocol, transport)
            self._add(1)

        def on_lost(protocol: StepwellProtocol, error: Exception | None) -> None:
            lost(protocol, error)
            protocol.loop.call_soon(protocol.loop.call_soon, self._add, -1)  # behind the handler

        monkeypatch.setattr(StepwellProtocol, "connection_made", on_made)
        monkeypatch.setattr(StepwellProtocol, "connection_lost", on_lost)

    def _add(self, count: int) -> None:
        with self._changed:
            self.open += count
            self._changed.notify_all()

    def wait_until(self, count: int, caller: Caller) -> None:
        """Wait until so many are open, and all that were begun have been seen."""
        with caller.line() as line:  # they are accepted in their order
            line.send(HEALTH)
            assert line.answer().status == 200
        with self._changed:
            assert self._changed.wait_for(lambda: self.open == count, servers.DEADLINE_S)


@dataclass
class Place:
    """A server and how to reach it."""

    caller: Caller
    http: httpx.Client
    connections: Connections
    is_streamed: bool

    def push(self, layout: Layout = LAYOUT, **fields: Any) -> Push:
        return Push(Worker(self.http, create(self.http, layout=layout, **fields), layout=layout))


class Push:
    """The next push of a worker as bytes."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.http, self.path = worker, worker.http, worker.path
        self.route = f"{worker.path}/gradients"

    def body(self, sequence: int = 0, value: float = 1.0, **fields: Any) -> bytes:
        self.worker.sequence = sequence
        gradient = payload(filled(value, self.worker.layout), self.worker.layout)
        return packed(self.worker.header(**fields), gradient)

    def version(self) -> int:
        return self.http.get(self.path).json()["version"]


@contextlib.contextmanager
def place_of(folder: Any, certificate: Any, way: tuple[str, str, str]) -> Iterator[Place]:
    """Run a server."""
    receives, loop, scheme = way
    cert, key = certificate if scheme == "tls" else (None, None)
    with pytest.MonkeyPatch.context() as patch:
        if receives == "streaming":
            inner = Gate.__call__

            async def without(gate: Any, scope: Any, receive: Any, send: Any) -> None:
                scope.pop("extensions", None)
                await inner(gate, scope, receive, send)

            patch.setattr(Gate, "__call__", without)
        connections = Connections(patch)
        with servers.hosted(folder, loop=loop, tls_cert=cert, tls_key=key) as server:
            verify = ssl.create_default_context(cafile=str(cert)) if cert else True
            with servers.http(server.url, verify=verify) as http:
                http.get("/healthz")  # so that its connection is there for all tests
                yield Place(Caller(server.url, cert), http, connections, receives == "streaming")


WAYS = [
    (receives, loop, scheme)
    for receives in ("into", "streaming")
    for loop in ("uvloop", "asyncio")
    for scheme in ("plain", "tls")
]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def place(request, tmp_path_factory):
    """A server that receives in one of the ways."""
    certificate = request.getfixturevalue("certificate")
    with place_of(tmp_path_factory.mktemp("data"), certificate, request.param) as place:
        yield place


@pytest.fixture(autouse=True)
def _nothing_is_logged(caplog):
    """No test makes a task fail, a future go unread or a callback raise."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == []


class TestContract:
    """What holds in all ways."""

    def test_a_push_is_applied_whatever_its_pieces(self, place):
        """Together with its header, behind it, byte by byte, cut within the length of a `bin`."""
        push = place.push()
        with place.caller.line() as line:
            for sequence, step in enumerate((1 << 20, 1, 7, 100)):
                data = request(push.route, push.body(sequence))
                line.send(*(data[at : at + step] for at in range(0, len(data), step)))
                assert line.answer().status == 200
            head = request(push.route, b"", length=len(push.body(4)))
            line.send(head, push.body(4))
            assert line.answer().status == 200

        assert push.version() == 5

    def test_a_message_cut_at_any_byte_leaves_no_trace(self, place):
        """Neither in the model nor in the session, and the same sequence number is due."""
        push = place.push()
        before = image(place.http, push.path)
        data = request(push.route, push.body())
        head = data.index(b"\r\n\r\n") + 4
        open_before = place.connections.open

        for end in range(head - 2, len(data)):
            with place.caller.line() as line:
                line.send(data[:end])
        place.connections.wait_until(open_before, place.caller)

        assert image(place.http, push.path) == before
        result = push.worker.push()
        assert (result["version"], result.get("duplicate", False)) == (1, False)

    @pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunks"])
    def test_a_large_message_cut_in_many_places_leaves_no_trace(self, place, is_chunked):
        """Also with a reset, as of a process that was killed."""
        push = place.push(LARGE)
        before = image(place.http, push.path)
        body = push.body()
        data = chunked(push.route, body, 100_000) if is_chunked else request(push.route, body)
        open_before = place.connections.open

        for end in (*range(400, len(data), len(data) // 19), len(data) - 1):
            with place.caller.line() as line:
                line.send(data[:end])
                line.sock.shutdown(2)
        place.connections.wait_until(open_before, place.caller)

        assert image(place.http, push.path) == before
        assert push.worker.push()["version"] == 1

    def test_requests_directly_behind_a_body_are_answered_in_order(self, place):
        """No byte of them is taken for the body or lost, and the connection goes on."""
        small, large = place.push(), place.push(LARGE)
        data = [
            request(large.route, large.body(0)),
            HEALTH,
            request(small.route, small.body(0)),
            request(large.route, large.body(1)),
            request(small.route, small.body(1)),
            HEALTH,
        ]
        with place.caller.line() as line:
            line.send(b"".join(data))
            statuses = [line.answer().status for _ in data]
            line.send(HEALTH)

            assert [*statuses, line.answer().status] == [200] * 7
        assert (small.version(), large.version()) == (2, 2)

    def test_chunks_are_taken_whatever_their_sizes(self, place):
        """Then there is no length, and the body is streamed."""
        small, large = place.push(), place.push(LARGE)
        with place.caller.line() as line:
            for sequence, size in enumerate((1, 5, 10_000)):
                line.send(chunked(small.route, small.body(sequence), size) + HEALTH)
                assert (line.answer().status, line.answer().status) == (200, 200)
            line.send(chunked(large.route, large.body(), 77_777) + HEALTH)
            assert (line.answer().status, line.answer().status) == (200, 200)

        assert (small.version(), large.version()) == (3, 1)

    def test_an_error_in_the_middle_is_answered_while_the_rest_is_sent(self, place):
        """The connection goes on, and so does the session."""
        push = place.push(LARGE)
        body = push.body(layout="another")
        with place.caller.line() as line:
            line.send(request(push.route, body)[: len(body) // 3])
            line.answer().problem(422, "layout_mismatch")
            line.send(request(push.route, body)[len(body) // 3 :] + HEALTH)
            assert line.answer().status == 200

            line.send(request(push.route, push.body()))
            assert line.answer().status == 200

    def test_a_wrong_payload_is_answered_before_its_end(self, place):
        """The length of its `bin` is enough to know."""
        push = place.push(LARGE)
        wrong = packed(push.worker.header(), bytes(6_000_000))
        with place.caller.line() as line:
            line.send(request(push.route, wrong)[:2_000_000])
            line.answer().problem(422, "payload_size_mismatch")
            line.send(request(push.route, wrong)[2_000_000:] + HEALTH)

            assert line.answer().status == 200
        assert push.version() == 0

    @pytest.mark.parametrize("extra", [-1, -40, 1, 100_000])
    def test_a_length_that_is_not_the_messages_is_refused(self, place, extra):
        """Shorter or longer; the length counts, so the next request begins behind it."""
        push = place.push()
        body = push.body()
        body = body[:extra] if extra < 0 else body + b"\xc4\x01x" + bytes(extra)
        with place.caller.line() as line:
            line.send(request(push.route, body) + HEALTH)
            line.answer().problem(422, "payload_size_mismatch")

            assert line.answer().status == 200
        assert push.version() == 0

    def test_empty_bins_and_no_payload_at_all_are_messages(self, place):
        """An empty `bin` is nothing; a session is opened by a header alone."""
        push = place.push()
        spaced = packed(push.worker.header(), b"", payload(filled(1.0)), b"")
        header = packed({"worker": "w1"})
        with place.caller.line() as line:
            line.send(request(push.route, spaced))
            assert line.answer().status == 200
            for body in (header, header + b"\xc4\x00"):
                data = request(f"{push.path}/workers", body)
                line.send(data[:-1], data[-1:])
                assert line.answer().status == 201
            line.send(request(push.route, b"") + HEALTH)
            line.answer().problem(400, "malformed_message")
            assert line.answer().status == 200

    def test_expect_100_continue_is_answered_when_the_body_is_wanted(self, place):
        """Once, before the body."""
        push = place.push(LARGE)
        body = push.body()
        with place.caller.line() as line:
            line.send(request(push.route, b"", "Expect: 100-continue", length=len(body)))
            assert line.answer().status == 100
            line.send(body)
            assert line.answer().status == 200
            line.send(HEALTH)
            assert line.answer().status == 200

    def test_expect_100_continue_for_a_body_that_is_not_wanted_ends_the_connection(self, place):
        """The client may send it or not, so nobody knows what its next bytes are."""
        with place.caller.line() as line:
            line.send(request("/v1/models/none/gradients", b"", "Expect: 100-continue", length=9))
            answer = line.answer()
            answer.problem(404, "model_not_found")
            assert answer.headers["connection"] == "close"
            line.send(b"123456789" + HEALTH)

            assert line.is_closed()

    def test_http_1_0_is_answered_and_closed(self, place):
        """It knows neither chunks, 100 nor kept connections."""
        push = place.push(LARGE)
        data = request(push.route, push.body(), "Expect: 100-continue")
        with place.caller.line() as line:
            line.send(data.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            assert line.answer().status == 200
            assert line.is_closed()

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
    def test_a_body_that_nobody_asked_for_is_read_over(self, place, method):
        """A handler that does not read its body does not harm the next request."""
        path = create(place.http)
        data = request(path, bytes(5_000_000), method=method)
        with place.caller.line() as line:
            line.send(data)
            assert line.answer(is_head=method == "HEAD").status in (200, 204, 405)
            line.send(HEALTH)
            assert line.answer().status == 200

    @pytest.mark.parametrize("last", ["Connection: close", "Connection: keep-alive"])
    def test_a_client_that_sends_its_whole_body_first_reads_why_it_was_refused(self, place, last):
        """Also if the connection ends with it: closed at once, a reset would reach the client."""
        body = bytes(5_000_000)
        with place.caller.line() as line:
            line.send(request("/v1/models/none/gradients", body, last))
            line.answer().problem(404, "model_not_found")
            if "close" in last:
                assert line.is_closed()

    def test_a_body_that_stalls_is_408_and_the_last_of_its_connection(self, place, monkeypatch):
        """Before its header, in it, in its payload, and in a chunk."""
        monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.1)
        push = place.push(LARGE)
        data, pieces = request(push.route, push.body()), chunked(push.route, push.body(), 9_999)
        head = data.index(b"\r\n\r\n") + 4
        before = image(place.http, push.path)
        for begin in (data[:head], data[: head + 9], data[:-1], pieces[:2_000_000]):
            with place.caller.line() as line:
                line.send(begin)
                answer = line.answer()

                answer.problem(408, "body_too_slow")
                assert answer.headers["connection"] == "close"
                assert line.is_closed()
        assert image(place.http, push.path) == before

    def test_a_body_that_trickles_is_408(self, place, monkeypatch):
        """Each byte would buy more time otherwise."""
        monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.2)
        push = place.push()
        with place.caller.line() as line:
            stop = threading.Event()

            def trickle() -> None:
                with contextlib.suppress(OSError):
                    for byte in push.body():
                        line.send(bytes([byte]))
                        if stop.wait(0.02):
                            return

            line.send(request(push.route, b"", length=len(push.body())))
            if isinstance(line.sock, ssl.SSLSocket):  # it is not for two threads
                line.send(push.body()[:9])
                line.answer().problem(408, "body_too_slow")
                return
            thread = threading.Thread(target=trickle)
            thread.start()
            try:
                line.answer().problem(408, "body_too_slow")
            finally:
                stop.set()
                thread.join()
        assert push.version() == 0

    def test_a_rest_that_nobody_waits_for_may_not_stall_either(self, place, monkeypatch):
        """After an early answer it is thrown away, at the same rate."""
        monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.1)
        push = place.push(LARGE)
        refused = request("/v1/models/none/gradients", b"", length=5_000_000)
        wrong = request(push.route, packed(push.worker.header(), bytes(6_000_000)))[:1_000_000]
        for data, status in ((refused, 404), (wrong, 422)):
            with place.caller.line() as line:
                line.send(data)
                assert line.answer().status == status

                assert line.is_closed()

    def test_a_broken_chunk_is_400_and_nothing_is_applied(self, place):
        """The parser finds it, and the handler that waits for the body is told."""
        push = place.push(LARGE)
        data = chunked(push.route, push.body(), 9_999)
        with place.caller.line() as line:
            line.send(data[:2_000_000], b"noise\r\n" * 9_999)
            line.answer().problem(400, "malformed_message")
            assert line.is_closed()
        assert push.version() == 0

    def test_buffers_are_let_go_of_at_once_when_a_body_fails(self, place, monkeypatch):
        """Not at the next garbage collection: they are as large as the model."""
        monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.3)
        held: list[weakref.ref[Any]] = []
        new_payload = Layout.new_payload

        def watched(layout: Layout, dtype: str) -> Any:
            arenas = new_payload(layout, dtype)
            held.extend(weakref.ref(arena) for arena in arenas.values())
            return arenas

        monkeypatch.setattr(Layout, "new_payload", watched)
        push = place.push(LARGE)
        data = request(push.route, push.body())
        too_long = request(push.route, packed(push.worker.header(), bytes(6_000_000)))
        held.clear()

        def is_free() -> bool:
            return all(arena() is None for arena in held)

        gc.disable()
        try:
            for begin, status in ((too_long, 422), (data, 408)):
                with place.caller.line() as line:
                    line.send(begin[:2_000_000])
                    assert line.answer().status == status
                    wait_for(is_free)
            with place.caller.line() as line:
                line.send(data[:2_000_000])
                wait_for(lambda: len(held) == 3)
            wait_for(is_free)
        finally:
            gc.enable()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so in the server's thread, which has no event for it."""
    end = time.monotonic() + servers.DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_body_that_does_not_come_within_the_grace_of_a_stop_is_503(tmp_path):
    """The client is told to try again, and no task is cancelled in the middle."""
    with (
        servers.served(tmp_path, STEPWELL_SHUTDOWN_GRACE_S="2") as server,
        servers.http(server.url) as http,
    ):
        push = Push(Worker(http, create(http, layout=LARGE), layout=LARGE))
        data = request(push.route, push.body())
        head = data.index(b"\r\n\r\n") + 4
        with Caller(server.url).line() as payload_cut, Caller(server.url).line() as header_cut:
            payload_cut.send(data[:-1])
            header_cut.send(data[: head + 3])

            server.terminate()

            payload_cut.answer().problem(503, "shutting_down")
            header_cut.answer().problem(503, "shutting_down")
            assert payload_cut.is_closed()
        code = server.wait()

    assert code == 0
    assert [entry for entry in server.events if entry.get("level") in ("error", "warning")] == []
