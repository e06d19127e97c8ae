"""Versions that workers hold in memory for long, and others who need their place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from stepwell_core.layout import Layout, Tensor
from stepwell_server import drain as limits

from tests import servers
from tests.server import calls
from tests.server.shared_memory.neighbour import Neighbour

LAYOUT = Layout([Tensor("w", (3_000,), "float32")])


class Crowd:
    """A model whose versions are all held, each by a neighbour of its own: those before 0, -1, -2.

    Args:
        server: That has it.
        http: A client of the server.
    """

    def __init__(self, server: servers.ServerThread, http) -> None:
        self.path = calls.create(http, layout=LAYOUT)
        self.worker = calls.Worker(http, self.path, layout=LAYOUT)
        self.neighbours, self.held, self.seen = [], [], []
        for _ in range(3):
            neighbour = Neighbour(server.application.memory_socket)
            held, region = neighbour.hold(self.path)
            self.neighbours.append(neighbour)
            self.held.append(held)
            self.seen.append(region.view(np.float32)[: LAYOUT.size])
            self.worker.push(1.0)

    def close(self) -> None:
        for neighbour in self.neighbours:
            neighbour.close()


@pytest.fixture
def crowd(server, http) -> Iterator[Crowd]:
    """A model that has no version to spare."""
    crowd = Crowd(server, http)
    yield crowd
    crowd.close()


def get(http, path: str, **headers: str):
    """Pull, whatever the answer is."""
    return http.get(f"{path}/parameters", headers={"Accept": calls.MSGPACK, **headers})


def test_a_hold_that_is_not_old_stays_and_the_pull_is_told_to_come_again(http, crowd):
    """Whoever has had a version for a moment only is let finish."""
    assert get(http, crowd.path).status_code == 503
    assert crowd.neighbours[0].ask("POST", f"{crowd.path}/memory/parameters").status == 503


def test_the_oldest_hold_gives_way_and_its_worker_reads_on(server, http, crowd, monkeypatch):
    """A stopped worker stops nobody; when it goes on, it sees what it saw."""
    monkeypatch.setattr(limits, "FAIR_AFTER_S", 0.0)
    reader = Neighbour(server.application.memory_socket)

    pulled = []
    for _ in range(8):
        held, _ = reader.hold(crowd.path)
        crowd.worker.push(1.0)  # into another buffer
        reader.let_go(crowd.path, held)
        pulled.append(calls.pull(http, crowd.path, LAYOUT)["w"][0])

    assert pulled == [1.0 - step / 2 for step in range(4, 12)]
    reader.close()
    assert [set(values.tolist()) for values in crowd.seen] == [{1.0}, {0.5}, {0.0}]


def test_letting_go_of_what_was_abandoned_does_no_harm(server, http, crowd, monkeypatch):
    """The worker does not know; and only the oldest was abandoned."""
    store = server.application.registry.get(crowd.path.rpartition("/")[2]).engine.store
    with monkeypatch.context() as patch:
        patch.setattr(limits, "FAIR_AFTER_S", 0.0)
        calls.pull(http, crowd.path, LAYOUT)
    assert store._old_held == 2

    crowd.neighbours[0].let_go(crowd.path, crowd.held[0])
    assert store._old_held == 2
    crowd.neighbours[1].let_go(crowd.path, crowd.held[1])
    assert store._old_held == 1


def test_what_was_abandoned_counts_among_what_a_connection_holds(http, crowd, monkeypatch):
    """Its buffer is still there, in the worker; else one that never lets go would fill the host."""
    monkeypatch.setattr(limits, "FAIR_AFTER_S", 0.0)
    path, neighbour = crowd.path, crowd.neighbours[0]
    for _ in range(3):
        neighbour.hold(path)
        crowd.worker.push(1.0)

    answer = neighbour.ask("POST", f"{path}/memory/parameters")

    assert (answer.status, answer.fields["code"]) == (409, "conflict")


def test_a_hold_whose_query_we_do_not_know_is_refused(crowd):
    """It holds nothing."""
    answer = crowd.neighbours[0].ask("POST", f"{crowd.path}/memory/parameters?names=w")

    assert (answer.status, answer.fields["code"]) == (422, "invalid_input")


def test_a_pull_of_what_the_caller_has_needs_no_version(http, crowd):
    """It is 304 while every version is held; what it has not is still refused."""
    assert get(http, crowd.path, **{"If-None-Match": "*"}).status_code == 304
    crowd.neighbours[0].let_go(crowd.path, crowd.held[0])
    before = get(http, crowd.path).headers["etag"]
    crowd.neighbours[0].hold(crowd.path)
    crowd.worker.push(1.0)

    answers = [
        get(http, crowd.path, **{"If-None-Match": tag})
        for tag in (before, before.replace(":3:", ":4:"))
    ]

    assert [answer.status_code for answer in answers] == [503, 304]
