"""Pushes and the memory they are received into, over the ways a body can come (`places.py`)."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest
from stepwell_core.placement import extent
from stepwell_server import deadlines
from stepwell_server.idle import GRAIN_BYTES

from tests.server.calls import (
    MSGPACK,
    Worker,
    assert_problem,
    definition,
    filled,
    new_name,
    packed,
    payload,
)
from tests.server.connections import Line, request
from tests.server.places import LARGE, Place, Push, wait_for
from tests.server.routes.test_workers import ask, sync

pytestmark = pytest.mark.usefixtures("nothing_is_logged")

GOOD = payload(filled(1.0, LARGE), LARGE)

Ending = Callable[[Place, pytest.MonkeyPatch], None]


def is_applied(place: Place, patch: pytest.MonkeyPatch) -> None:
    """The usual end, and that of its repetition."""
    push = place.push(LARGE)
    push.worker.push()
    push.worker.sequence = 0
    assert push.worker.try_push().json()["duplicate"]


def is_refused_by_the_lane(place: Place, patch: pytest.MonkeyPatch) -> None:
    """Behind its last byte."""
    push = place.push(LARGE)
    assert_problem(push.worker.try_push(float("nan")), 422, "nonfinite_gradient")
    assert_problem(push.worker.try_push(weight=1e300), 422, "invalid_input")
    assert_problem(push.worker.try_push(sequence=7), 409, "sequence_gap")


def is_of_another_size(place: Place, patch: pytest.MonkeyPatch) -> None:
    """Shorter and longer."""
    push = place.push(LARGE)
    for wrong in (GOOD[:-4], GOOD + b"1234"):
        answer = push.worker.send(packed(push.worker.header(), wrong))
        assert_problem(answer, 422, "payload_size_mismatch")


def is_cut(place: Place, patch: pytest.MonkeyPatch) -> None:
    """Behind its header and in its payload."""
    push = place.push(LARGE)
    data = request(push.route, push.body())
    for end in (len(data) - len(GOOD), len(data) // 2):
        with place.caller.line() as line:
            line.send(data[:end])
            wait_for(lambda: place.staging.leases == 1)
        place.connections.wait_until_idle(place.caller)


def is_slow(place: Place, patch: pytest.MonkeyPatch) -> None:
    """It stalls in the middle."""
    with patch.context() as inner, place.caller.line() as line:
        inner.setattr(deadlines, "BODY_WINDOW_S", 0.1)
        push = place.push(LARGE)
        line.send(request(push.route, push.body())[:-9])
        line.answer().problem(408, "body_too_slow")


def is_of_another_history(place: Place, patch: pytest.MonkeyPatch) -> None:
    """The model is overwritten while the payload is on its way."""
    push = place.push(LARGE)
    data = request(push.route, push.body())
    with place.caller.line() as line:
        line.send(data[:-9])
        wait_for(lambda: place.staging.leases == 1)
        overwrite(place, push.path, GOOD, 200)
        overwrite(place, push.path, GOOD[:-4], 422)
        line.send(data[-9:])
        line.answer().problem(409, "stale_incarnation")


def overwrite(place: Place, path: str, values: bytes, status: int) -> None:
    """Replace all parameters."""
    body = packed({"layout": LARGE.hash}, values)
    answer = place.http.put(f"{path}/parameters", content=body, headers={"Content-Type": MSGPACK})
    assert answer.status_code == status


@contextlib.contextmanager
def at_a_barrier(place: Place) -> Iterator[tuple[Push, Line]]:
    """Let a push wait for a second one, on a line whose answer nobody has read."""
    push = place.push(LARGE, consistency=sync(2))
    with place.caller.line() as line:
        line.send(request(push.route, push.body()))
        wait_for(lambda: ask(push.worker).status_code == 202)
        assert place.staging.leases == 1
        yield push, line


def waits_and_is_in_a_step(place: Place, patch: pytest.MonkeyPatch) -> None:
    """With a retry that joined it meanwhile, and took no memory."""
    with at_a_barrier(place) as (push, line), place.caller.line() as retry:
        body = push.body()
        retry.send(request(push.route, body)[: -len(body) // 2])
        assert place.staging.leases == 1
        retry.send(request(push.route, body)[-len(body) // 2 :])
        Worker(place.http, push.path, "w1", LARGE).push()
        answers = [line.answer(), retry.answer()]
        assert [answer.status for answer in answers] == [200, 200]


def waits_and_is_forgotten(place: Place, patch: pytest.MonkeyPatch) -> None:
    """Its session is opened anew; or its model is overwritten, or deleted."""
    with at_a_barrier(place) as (push, line):
        Worker(place.http, push.path, "w0", LARGE)
        assert line.answer().status == 503
    with at_a_barrier(place) as (push, line):
        overwrite(place, push.path, GOOD, 200)
        assert line.answer().status == 503
    with at_a_barrier(place) as (push, line):
        assert place.http.delete(push.path).status_code == 204
        assert line.answer().status == 404


def waits_and_its_caller_goes_away(place: Place, patch: pytest.MonkeyPatch) -> None:
    """The push waits on, and so does its memory."""
    with at_a_barrier(place) as (push, line):
        line.sock.close()
    Worker(place.http, push.path, "w1", LARGE).push()
    place.connections.wait_until_idle(place.caller)


def is_the_initial_values(place: Place, patch: pytest.MonkeyPatch) -> None:
    """Cut, wrong, and right."""
    good = request("/v1/models", packed(definition(new_name(), LARGE), GOOD))
    with place.caller.line() as line:
        line.send(good[:-9])
        wait_for(lambda: place.staging.leases == 1)
    place.connections.wait_until_idle(place.caller)
    with place.caller.line() as line:
        line.send(request("/v1/models", packed(definition(new_name(), LARGE), GOOD[:-4])))
        assert line.answer().status == 422
        line.send(good)
        assert line.answer().status == 201


ENDINGS: list[Ending] = [
    is_applied,
    is_refused_by_the_lane,
    is_of_another_size,
    is_cut,
    is_slow,
    is_of_another_history,
    waits_and_is_in_a_step,
    waits_and_is_forgotten,
    waits_and_its_caller_goes_away,
    is_the_initial_values,
]


@pytest.fixture
def request_name(request) -> str:
    """The name of the test with its parameters."""
    return request.node.name


def test_however_a_push_ends_its_memory_comes_back(place, monkeypatch, request_name):
    """In any order: nothing is out when it has ended, and idle buffers are no more than needed."""
    endings = random.Random(request_name).sample(ENDINGS, len(ENDINGS))

    for ending in endings:
        ending(place, monkeypatch)
        wait_for(lambda: place.staging.leases == 0)

    assert place.staging.used_bytes == 0
    assert place.staging.idle_bytes <= 2 * (extent(LARGE) + GRAIN_BYTES)
