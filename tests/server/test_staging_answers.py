"""Answers that are copies of their own: they take part in the budget until they have left."""

from __future__ import annotations

import asyncio
import http.client
import select
import socket
from collections.abc import Iterator

import httpx
import pytest
from stepwell_core.layout import Layout, Tensor
from stepwell_server import staging as room
from stepwell_server.leases import Request
from stepwell_server.staging import Staging

from tests import servers
from tests.server.calls import MOMENTUM, MSGPACK, assert_problem, create
from tests.server.connections import Caller
from tests.server.places import wait_for
from tests.server.test_http_protocol import LARGE, Pusher
from tests.server.test_staging import MIB, Takers, run, settle

SMALL = Layout([Tensor("w", (1_000,), "float32")])


def test_answers_leave_room_for_the_largest_payload_and_let_payloads_by():
    """Whoever reads slowly keeps other readers waiting, and no push."""

    async def scenario(staging: Staging) -> None:
        staging.reserve("model", 0, 2 * MIB)
        answers = [asyncio.ensure_future(staging.take_for_answer(MIB)) for _ in range(3)]
        await settle()
        assert [answer.done() for answer in answers] == [True, True, False]

        takers = Takers(staging)
        await takers.begin("a", 2 * MIB)
        assert takers.served == "a"
        await takers.release("a")
        assert not answers[2].done()
        answers[0].result().release()
        await settle()
        assert answers[2].done()

    run(scenario)


def test_one_answer_is_always_made_however_little_room_there_is():
    """It takes all there is, after the payloads that came before it."""

    async def scenario(staging: Staging) -> None:
        staging.reserve("model", 0, 4 * MIB)
        assert staging.try_take(1) is None
        with await staging.take_for_answer(9 * MIB) as lease:
            assert lease.nbytes == 4 * MIB
        assert staging.used_bytes == 0

    run(scenario)


class StalledReader:
    """Asks for parameters, and reads nothing of the answer but that it has begun."""

    def __init__(self, caller: Caller, path: str, accept: str) -> None:
        self.sock = caller.connect(1 << 16)
        lines = [f"GET {path} HTTP/1.1", f"Host: {caller.host}", f"Accept: {accept}", "", ""]
        self.sock.sendall("\r\n".join(lines).encode())
        assert select.select([self.sock], [], [], servers.DEADLINE_S)[0], "no answer came"

    def read(self) -> int:
        """Read all; returns the answer's status."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        answer = http.client.HTTPResponse(self.sock)
        answer.begin()
        answer.read()
        self.sock.close()
        return answer.status


@pytest.fixture
def narrow(tmp_path, monkeypatch) -> Iterator[servers.ServerThread]:
    """A server with room for two payloads of 32 MiB, where nobody waits for it for long."""
    monkeypatch.setattr(room, "WAIT_S", 0.3)
    with servers.hosted(tmp_path, staging_bytes=2 * LARGE.nbytes) as server:
        yield server


@pytest.fixture
def http_client(narrow) -> Iterator[httpx.Client]:
    """A client of `narrow`."""
    with servers.http(narrow.url) as client:
        yield client


def test_slow_readers_of_half_width_are_as_many_as_there_is_room_for(narrow, http_client):
    """The others are told to come again; pushes are received as ever."""
    path, caller = create(http_client, layout=LARGE), Caller(narrow.url)
    half = f"{path}/parameters?dtype=float16"
    readers = [StalledReader(caller, half, MSGPACK) for _ in range(2)]
    staging = narrow.application.staging

    refused = http_client.get(half, headers={"Accept": MSGPACK})
    with caller.session() as connection:
        Pusher(connection, path, LARGE).push()

    assert_problem(refused, 503, "staging_full")
    assert staging.used_bytes == LARGE.nbytes
    assert readers[0].read() == 200
    wait_for(lambda: staging.leases == 1)
    readers[1].sock.close()
    wait_for(lambda: staging.leases == 0)
    assert http_client.get(half, headers={"Accept": MSGPACK}).status_code == 200
    wait_for(lambda: staging.leases == 0)


@pytest.mark.parametrize(
    ("query", "accept"),
    [
        ("dtype=bfloat16", MSGPACK),
        ("", "application/vnd.safetensors"),
        ("dtype=float16", "application/vnd.safetensors"),
        ("", "application/vnd.numpy.npz"),
        ("slot=momentum", MSGPACK),
    ],
)
def test_every_copy_has_room_until_it_has_left(narrow, http_client, query, accept):
    """In whatever format; the parameters as they lie are no copy."""
    path = create(http_client, layout=LARGE, optimizer=MOMENTUM)
    staging, caller = narrow.application.staging, Caller(narrow.url)
    whole = StalledReader(caller, f"{path}/parameters", MSGPACK)
    assert staging.leases == 0
    whole.sock.close()

    reader = StalledReader(caller, f"{path}/parameters?{query}", accept)

    assert staging.leases == 1
    assert staging.used_bytes >= LARGE.nbytes // 2
    assert reader.read() == 200
    wait_for(lambda: staging.leases == 0)


@pytest.mark.parametrize("what", ["slot=velocity", "slot=velocity&dtype=float16"])
def test_a_copy_that_cannot_be_made_gives_its_room_back(narrow, http_client, what):
    """And the refusal says why."""
    path = create(http_client, layout=LARGE, optimizer=MOMENTUM)

    answer = http_client.get(f"{path}/parameters?{what}", headers={"Accept": MSGPACK})

    assert_problem(answer, 422, "invalid_input")
    assert narrow.application.staging.leases == 0


def test_a_small_answer_waits_for_nobody(narrow, http_client):
    """A person who looks at a small model sees it, however busy the server is."""
    path, staging = create(http_client, layout=SMALL), narrow.application.staging
    lease = staging._grant(Request(staging.budget_bytes, staging.shared, None, False))
    assert lease is not None

    answer = http_client.get(f"{path}/parameters", headers={"Accept": "application/json"})

    assert answer.status_code == 200
    lease.release()


def test_who_finds_no_room_is_refused_and_holds_no_version(narrow, http_client):
    """So that steps go on in place."""
    path, staging = create(http_client, layout=LARGE), narrow.application.staging
    lease = staging._grant(Request(staging.budget_bytes, staging.shared, None, False))
    assert lease is not None

    answer = http_client.get(f"{path}/parameters?dtype=float16", headers={"Accept": MSGPACK})

    assert_problem(answer, 503, "staging_full")
    store = narrow.application.registry.get(path.rpartition("/")[2]).engine.store
    assert store._current.holders == 0
    lease.release()
