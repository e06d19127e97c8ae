"""Pushes and models that meet the limits of the staging, on a server that has little of it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from stepwell_core.layout import Layout, Tensor
from stepwell_server import deadlines
from stepwell_server import staging as room
from stepwell_server.leases import Lease, Request

from tests import servers
from tests.server.calls import (
    MSGPACK,
    Worker,
    assert_problem,
    create,
    definition,
    new_name,
    packed,
    pull,
)
from tests.server.connections import Caller, request
from tests.server.places import HEALTH, Push, wait_for
from tests.server.routes.test_workers import sync, waiting_push

MIB = 1 << 20
LAYOUT = Layout([Tensor("w", (MIB // 4,), "float32")])


@pytest.fixture
def narrow(tmp_path, monkeypatch):
    """A server with room for four payloads of 1 MiB, whose pushes wait for 0.3 s for it."""
    monkeypatch.setattr(room, "WAIT_S", 0.3)
    with servers.hosted(tmp_path, staging_bytes=4 * MIB) as server:
        yield server


@pytest.fixture
def http(narrow):
    """A client of `narrow`."""
    with servers.http(narrow.url) as client:
        yield client


def fill(narrow) -> Lease:
    """Take all the room there is."""
    staging = narrow.application.staging
    lease = staging._grant(Request(4 * MIB, staging.shared, None, False))
    assert lease is not None
    return lease


def test_a_push_that_finds_no_room_is_503_and_its_body_was_not_read(narrow, http, monkeypatch):
    """Its deadlines stand meanwhile; and when there is room again it is applied."""
    monkeypatch.setattr(deadlines, "BODY_WINDOW_S", 0.1)
    monkeypatch.setattr(deadlines, "BODY_S", 0.1)
    staging, counts = narrow.application.staging, narrow.application.counts
    worker = Worker(http, create(http, layout=LAYOUT), layout=LAYOUT)
    lease = fill(narrow)

    refused = worker.try_push()

    assert_problem(refused, 503, "staging_full")
    assert refused.headers["retry-after"] == "1"
    assert (refused.json()["asked"], refused.json()["budget"]) == (MIB, 4 * MIB)
    assert (counts.staging_refused, counts.bodies_too_slow) == (1, 0)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(worker.try_push)
        wait_for(lambda: bool(staging.shared.queue))
        lease.release()
        assert later.result().status_code == 200


def test_a_payload_larger_than_the_budget_is_413_before_it_is_sent(narrow, http):
    """With the advice; a model whose own payload would not fit is refused when it is created."""
    worker = Worker(http, create(http, layout=LAYOUT), layout=LAYOUT)
    other = create(http, layout=LAYOUT, consistency=sync(2))
    assert other
    head = packed(worker.header(dtype="float64"))
    answer = worker.send(head + b"\xc6" + (2 * MIB).to_bytes(4, "big") + bytes(2 * MIB))
    assert answer.status_code == 200, "2 MiB are not reserved"
    large = Layout([Tensor("w", (MIB + 1,), "float32")])
    body = packed(definition(new_name(), large, has_values=False))

    refused = http.post("/v1/models", content=body, headers={"Content-Type": MSGPACK})

    document = assert_problem(refused, 507, "does_not_fit")
    assert "--staging-bytes" in document["detail"]


def test_a_barrier_that_could_never_be_complete_is_refused_when_the_model_is_created(http):
    """With the arithmetic: one gradient for each worker, and one of the largest model."""
    name = new_name()
    header = definition(name, LAYOUT, consistency=sync(4), has_values=False)
    refused = http.post("/v1/models", content=packed(header), headers={"Content-Type": MSGPACK})

    document = assert_problem(refused, 507, "does_not_fit")
    assert (document["needed"], document["available"]) == (5 * MIB, 4 * MIB)
    assert 'Sync(reduction="arrival")' in document["detail"]
    create(http, name, layout=LAYOUT, consistency=sync(3))
    create(http, layout=LAYOUT)
    assert http.delete(f"/v1/models/{name}").status_code == 204
    create(http, layout=LAYOUT, consistency=sync(3))


def test_pushes_of_other_models_never_starve_a_barrier(narrow, http):
    """Two workers flood the server while three meet again and again."""
    barrier = create(http, layout=LAYOUT, consistency=sync(3))
    flooded = create(http, layout=LAYOUT)
    is_over = threading.Event()

    def flood(name: str) -> None:
        with servers.http(narrow.url) as own:
            worker = Worker(own, flooded, name, LAYOUT)
            while not is_over.is_set():
                worker.sequence += worker.try_push().status_code == 200

    def meet(name: str) -> list[str]:
        with servers.http(narrow.url) as own:
            worker = Worker(own, barrier, name, LAYOUT)
            return [worker.push()["outcome"] for _ in range(10)]

    with ThreadPoolExecutor(5) as pool:
        floods = [pool.submit(flood, name) for name in ("f0", "f1")]
        meetings = [pool.submit(meet, name) for name in ("w0", "w1", "w2")]
        try:
            outcomes = [meeting.result() for meeting in meetings]
        finally:
            is_over.set()
        for done in floods:
            done.result()

    assert outcomes == [["applied"] * 10] * 3
    assert narrow.application.staging.leases == 0


def test_a_stop_refuses_who_waits_for_room_at_once(narrow, http, monkeypatch):
    """It is told to come again."""
    monkeypatch.setattr(room, "WAIT_S", servers.DEADLINE_S)
    staging = narrow.application.staging
    worker = Worker(http, create(http, layout=LAYOUT), layout=LAYOUT)
    lease = fill(narrow)
    with ThreadPoolExecutor(1) as pool:
        push = pool.submit(worker.try_push)
        wait_for(lambda: bool(staging.shared.queue))

        staging._loop.call_soon_threadsafe(staging.close)

        assert_problem(push.result(), 503, "shutting_down")
    lease.release()


def test_a_second_push_of_a_session_is_refused_before_it_takes_room(narrow, http):
    """While its first waits at a barrier."""
    path = create(http, layout=LAYOUT, consistency=sync(2))
    worker = Worker(http, path, layout=LAYOUT)
    with ThreadPoolExecutor(1) as pool, servers.http(narrow.url) as own:
        first = waiting_push(pool, worker)
        second = Worker.__new__(Worker)
        second.__dict__.update(worker.__dict__, http=own, sequence=1)

        assert_problem(second.try_push(), 409, "push_in_flight")

        Worker(own, path, "w1", LAYOUT).push()
        assert first.result().status_code == 200


def test_a_client_that_expects_100_continue_is_refused_before_it_sends_anything(narrow, http):
    """503 in the place of 100, and nobody knows whether it sends its body, so that is the end."""
    push = Push(Worker(http, create(http, layout=LAYOUT), layout=LAYOUT))
    lease = fill(narrow)
    body = push.body()
    head = body[: -LAYOUT.nbytes - 5]
    with Caller(narrow.url).line() as line:
        line.send(request(push.route, b"", "Expect: 100-continue", length=len(body)), head)
        answer = line.answer()
        if answer.status == 100:  # to read the header, which came with the request
            answer = line.answer()
        answer.problem(503, "staging_full")
        lease.release()
    assert push.worker.push()["version"] == 1


def test_requests_behind_a_body_that_waits_for_room_are_answered_in_order(
    narrow, http, monkeypatch
):
    """The connection goes on behind it, be it applied or refused."""
    push = Push(Worker(http, create(http, layout=LAYOUT), layout=LAYOUT))
    data = request(push.route, push.body()) + HEALTH
    staging = narrow.application.staging
    with Caller(narrow.url).line() as line:
        lease = fill(narrow)
        line.send(data)
        line.answer().problem(503, "staging_full")
        assert line.answer().status == 200
        monkeypatch.setattr(room, "WAIT_S", servers.DEADLINE_S)
        line.send(data)
        wait_for(lambda: bool(staging.shared.queue))
        lease.release()
        assert [line.answer().status, line.answer().status] == [200, 200]


def test_a_client_that_goes_away_while_it_waits_for_room_leaves_nothing(narrow, http, monkeypatch):
    """When its turn comes it is seen to be gone."""
    monkeypatch.setattr(room, "WAIT_S", servers.DEADLINE_S)
    staging = narrow.application.staging
    push = Push(Worker(http, create(http, layout=LAYOUT), layout=LAYOUT))
    lease = fill(narrow)
    with Caller(narrow.url).line() as line:
        line.send(request(push.route, push.body())[:-9])
        wait_for(lambda: bool(staging.shared.queue))
    lease.release()

    wait_for(lambda: not staging.shared.queue and staging.leases == 0)
    assert push.version() == 0
    assert narrow.application.counts.bodies_cut == 1


def test_the_gradient_of_a_push_that_was_answered_202_stays_as_it_is(tmp_path):
    """Its memory is used for nothing else, though its request is long over."""
    with (
        servers.hosted(tmp_path, staging_bytes=4 * MIB, push_wait_s=0.02) as server,
        servers.http(server.url) as http,
    ):
        path = create(http, layout=LAYOUT, consistency=sync(2))
        first, second = (Worker(http, path, name, LAYOUT) for name in ("w0", "w1"))
        assert first.try_push(2.0).status_code == 202
        other = Worker(http, create(http, layout=LAYOUT), layout=LAYOUT)
        for value in (7.0, 8.0):
            other.push(value)

        second.push(4.0)

        assert set(pull(http, path, LAYOUT)["w"].tolist()) == {1.0 - 0.5 * 3.0}
        assert server.application.staging.leases == 0


def test_a_short_step_keeps_the_gradient_of_a_push_that_was_answered_202_too(tmp_path):
    """The event loop itself makes the steps of small models; their memory is lent like any."""
    layout = Layout([Tensor("w", (25_000,), "float32")])
    with (
        servers.hosted(tmp_path, push_wait_s=0.02) as server,
        servers.http(server.url) as http,
    ):
        path = create(http, layout=layout, consistency=sync(2))
        first, second = (Worker(http, path, name, layout) for name in ("w0", "w1"))

        assert first.try_push(2.0).status_code == 202
        assert server.application.staging.leases == 1
        second.push(4.0)

        assert set(pull(http, path, layout)["w"].tolist()) == {1.0 - 0.5 * 3.0}
        assert server.application.staging.leases == 0
