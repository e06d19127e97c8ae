"""Pulls that wait for a version: woken by steps, cuts and stops, forgotten with their client."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests import servers
from tests.server.calls import (
    MSGPACK,
    Worker,
    assert_problem,
    create,
    filled,
    packed,
    payload,
    unpacked,
)
from tests.server.connections import Caller, request


def readers_of(server: servers.ServerThread, path: str) -> Any:
    """Return who waits for a model; to be looked at."""
    return server.application.registry.get(path.rpartition("/")[2]).readers


def until_waiting(server: servers.ServerThread, path: str, *, is_any: bool = True) -> None:
    """Return when somebody, or nobody, waits for a version of the model."""
    deadline = time.monotonic() + servers.DEADLINE_S
    while readers_of(server, path).is_any_waiting is not is_any:
        assert time.monotonic() < deadline, f"somebody waits: {not is_any}"


def waiting_pull(
    pool: ThreadPoolExecutor, server: servers.ServerThread, path: str, tag: str = "", **query: Any
) -> Future[httpx.Response]:
    """Start a pull, and return when it waits."""

    def pull() -> httpx.Response:
        with servers.http(server.url) as http:
            headers = {"Accept": MSGPACK, "If-None-Match": tag}
            return http.get(f"{path}/parameters", headers=headers, params=query)

    future = pool.submit(pull)
    until_waiting(server, path)
    return future


def test_a_pull_waits_for_the_version_that_it_asks_for(server, http):
    """And has its bytes, not those of before."""
    path = create(http)
    worker = Worker(http, path)

    with ThreadPoolExecutor(1) as pool:
        pull = waiting_pull(pool, server, path, min_version=2, wait_s=60)
        worker.push()
        before = pull.done()
        worker.push()
        answer = pull.result()

    assert not before
    header, body = unpacked(answer.content)
    assert header["version"] == 2
    assert body == payload(filled(0.0))


def test_when_the_time_is_over_the_answer_is_what_there_is(http):
    """304 for who has it already, so that a waiting worker downloads nothing twice."""
    path = create(http)
    query = {"min_version": 1, "wait_s": 0.01}
    first = http.get(f"{path}/parameters", headers={"Accept": MSGPACK}, params=query)

    again = http.get(
        f"{path}/parameters",
        headers={"Accept": MSGPACK, "If-None-Match": first.headers["etag"]},
        params=query,
    )

    assert (first.status_code, unpacked(first.content)[0]["version"]) == (200, 0)
    assert (again.status_code, again.content) == (304, b"")


def test_a_slot_can_be_waited_for_too(server, http):
    """It is copied behind the step that was waited for."""
    path = create(http, optimizer={"class_name": "SGD", "config": {"momentum": 0.5}})
    worker = Worker(http, path)

    with ThreadPoolExecutor(1) as pool:
        pull = waiting_pull(pool, server, path, slot="momentum", min_version=1, wait_s=60)
        worker.push()
        header, _ = unpacked(pull.result().content)

    assert (header["slot"], header["version"]) == ("momentum", 1)


def test_a_pull_of_another_history_is_refused_at_once(http):
    """Whatever its number: it counts something else."""
    path = create(http)

    for query in ({}, {"min_version": 9, "wait_s": 60}):
        answer = http.get(f"{path}/parameters", params={"incarnation": "0" * 32, **query})
        document = assert_problem(answer, 409, "stale_incarnation")
        assert document["incarnation"] == http.get(path).json()["incarnation"]


def test_an_overwrite_wakes_those_who_wait_in_the_old_history(server, http):
    """They learn of the new one at once and not after a minute."""
    path = create(http)
    incarnation = http.get(path).json()["incarnation"]
    body = packed({"layout": http.get(path).json()["layout"]}, payload(filled(3.0)))

    with ThreadPoolExecutor(1) as pool:
        query = {"min_version": 9, "wait_s": 60, "incarnation": incarnation}
        pull = waiting_pull(pool, server, path, **query)
        http.put(f"{path}/parameters", content=body, headers={"Content-Type": MSGPACK})
        answer = pull.result()

    assert_problem(answer, 409, "stale_incarnation")


def test_deleting_the_model_answers_those_who_wait(server, http):
    """There is nothing to wait for any more."""
    path = create(http)

    with ThreadPoolExecutor(1) as pool:
        pull = waiting_pull(pool, server, path, min_version=1, wait_s=60)
        http.delete(path)
        answer = pull.result()

    assert_problem(answer, 404, "model_not_found")


def test_a_stop_answers_those_who_wait(tmp_path):
    """503, to be tried again where the server comes up."""
    with ThreadPoolExecutor(1) as pool:
        with servers.hosted(tmp_path) as server:
            with servers.http(server.url) as http:
                path = create(http)
            pull = waiting_pull(pool, server, path, min_version=1, wait_s=60)
        answer = pull.result()

    assert_problem(answer, 503, "shutting_down")
    assert answer.headers["retry-after"] == "1"


def test_a_client_that_goes_away_is_forgotten(server, http):
    """A worker that was killed in a long poll leaves nothing behind."""
    path = create(http)

    with Caller(server.url).line() as line:
        line.send(request(f"{path}/parameters?min_version=1&wait_s=60", method="GET"))
        until_waiting(server, path)

    until_waiting(server, path, is_any=False)


@pytest.mark.parametrize(
    "query",
    [
        {"wait_s": 61},
        {"wait_s": -1},
        {"wait_s": "nan"},
        {"min_version": -1},
        {"min_version": 1 << 63},
        {"incarnation": "0" * 65},
    ],
    ids=str,
)
def test_what_cannot_be_waited_for_is_422(http, query):
    """A proxy would close the connection of who waits for ever."""
    path = create(http)

    assert_problem(http.get(f"{path}/parameters", params=query), 422, "invalid_input")
