"""What happened to a model, over HTTP: ranges, streams, restarts and ends."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from stepwell_server.routes import history as routes
from stepwell_server.tokens import TokenStore

from tests import servers
from tests.server.calls import (
    LAYOUT,
    MSGPACK,
    Worker,
    assert_problem,
    create,
    filled,
    new_name,
    packed,
    payload,
    unpacked,
)


def history(http: httpx.Client, path: str, **query: Any) -> dict[str, Any]:
    """Return a range of a model's history."""
    answer = http.get(f"{path}/history", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def kinds(found: dict[str, Any]) -> list[str]:
    """Return the kinds of the events."""
    return found["events"]["kind"]


def messages(stream: httpx.Response) -> Iterator[dict[str, str]]:
    """Yield what a stream of server-sent events says."""
    text = ""
    for piece in stream.iter_text():
        *whole, text = (text + piece).split("\n\n")
        for message in whole:
            yield dict(line.split(": ", 1) for line in message.split("\n") if line[0] != ":")


def history_of(server: servers.ServerThread, path: str) -> Any:
    """Return a model's history; to be looked at."""
    return server.application.registry.get(path.rpartition("/")[2]).history


def test_every_step_is_told_with_its_metrics(http):
    """Its norms, and the worker's numbers as series over versions."""
    path = create(http)
    worker = Worker(http, path)

    for loss in (0.5, 0.25):
        worker.push(metrics={"loss": loss, "top 1 / accuracy": 0.9})

    series = history(http, path)["series"]
    assert series["metrics.loss"]["value"] == [0.5, 0.25]
    assert series["metrics.top 1 / accuracy"]["value"] == [0.9, 0.9]
    assert series["gradient_norm"]["value"] == [4.0, 4.0]  # sixteen ones
    assert series["update_norm"]["value"] == [2.0, 2.0]  # at a rate of 1/2
    assert series["contributors"]["version"] == [1, 2]


def test_metrics_of_a_json_push_and_of_all_workers_of_a_barrier_arrive(http):
    """Each worker's own in the step; the series is their mean."""
    path = create(http, consistency={"mode": "sync", "workers": 2})
    first, second = Worker(http, path, "a"), Worker(http, path, "b")
    gradients = {name: array.tolist() for name, array in filled(1.0).items()}
    body = {**first.header(metrics={"loss": 1.0}), "gradients": gradients}
    del body["layout"]

    with contextlib.suppress(httpx.ReadTimeout):  # it waits for the other
        http.post(f"{path}/gradients", json=body, timeout=0.5)
    second.push(metrics={"loss": 2.0})

    found = history(http, path, kinds="step")
    fields = found["events"]["fields"][0]
    assert fields["workers"] == ["a", "b"]
    assert fields["metrics"] == {"a": {"loss": 1.0}, "b": {"loss": 2.0}}
    assert found["series"]["metrics.loss"]["value"] == [1.5]
    assert history(http, path, kinds="step", series="false") == {**found, "series": {}}


@pytest.mark.parametrize(
    "metrics",
    [
        {"loss": float("nan")},
        {"loss": float("inf")},
        {"loss": "low"},
        {"": 1.0},
        {"x" * 65: 1.0},
        {"a\nb": 1.0},
        {f"m{n}": 1.0 for n in range(65)},
    ],
    ids=["nan", "infinite", "text", "no name", "long name", "control", "many"],
)
def test_metrics_that_cannot_be_are_refused_and_change_nothing(http, metrics):
    """Finite numbers under short printable names, 64 of them at most."""
    path = create(http)
    worker = Worker(http, path)

    problem = assert_problem(worker.try_push(metrics=metrics), 422, "invalid_input")

    assert "metrics" in problem["detail"]
    assert http.get(path).json()["version"] == 0


def test_everything_that_people_do_is_told(http):
    """Joins, hyperparameters, checkpoints, cuts, finalize, leaves; each with its version."""
    path = create(http)
    worker = Worker(http, path)
    worker.push()
    http.patch(f"{path}/optimizer", json={"learning_rate": 0.25}).raise_for_status()
    saved = http.post(f"{path}/checkpoints").json()["id"]
    http.post(f"{path}/finalize").raise_for_status()
    http.post(f"{path}/checkpoints/{saved}/restore").raise_for_status()
    body = packed({"layout": LAYOUT.hash}, payload(filled(0.0)))
    headers = {"Content-Type": MSGPACK}
    http.put(f"{path}/parameters", content=body, headers=headers).raise_for_status()
    http.put(f"{path}/state", json={"iterations": 9}).raise_for_status()
    http.delete(f"{path}/workers/w0").raise_for_status()

    events = history(http, path)["events"]
    told = list(zip(events["kind"], events["version"], strict=True))
    assert told == [
        ("start", 0), ("join", 0), ("hyperparameters", 1), ("checkpoint", 1), ("finalize", 2),
        ("cut", 3), ("cut", 4), ("cut", 5), ("leave", 5),
    ]  # fmt: skip
    cuts = [fields for fields in events["fields"] if "cause" in fields]
    assert [cut["cause"] for cut in cuts] == ["restore", "overwrite", "import"]
    assert cuts[0]["checkpoint"] == saved
    assert events["fields"][2] == {"old": {"learning_rate": 0.5}, "new": {"learning_rate": 0.25}}
    assert events["fields"][8]["reason"] == "closed"


def test_a_drop_is_told(http):
    """Which worker's, and why."""
    path = create(http, on_nonfinite="drop")
    Worker(http, path, "w7").push(float("nan"))

    events = history(http, path, kinds="drop")["events"]

    assert events["fields"] == [{"worker": "w7", "outcome": "skipped_nonfinite", "staleness": 0}]


def test_a_refused_or_repeated_push_is_no_event(http):
    """It changed nothing."""
    path = create(http)
    worker = Worker(http, path)
    worker.push()
    worker.sequence = 0
    assert worker.push()["duplicate"]
    assert_problem(worker.try_push(float("nan")), 422, "nonfinite_gradient")

    assert kinds(history(http, path, kinds=["step", "drop"])) == ["step"]


def test_msgpack_is_the_fast_form(http):
    """The same fields."""
    path = create(http)

    answer = http.get(f"{path}/history", headers={"Accept": MSGPACK})

    header, body = unpacked(answer.content)
    assert header["events"]["kind"] == ["start"]
    assert body == b""


@pytest.mark.parametrize(
    "query",
    [
        {"points": 1},
        {"points": 4001},
        {"from_version": -1},
        {"to_version": "x"},
        {"since": "nan"},
        {"kinds": "nonsense"},
        {"series": "some"},
        {"first": 3},
    ],
    ids=str,
)
def test_a_range_that_cannot_be_is_refused(http, query):
    """What is not in the list is no parameter."""
    path = create(http)

    assert_problem(http.get(f"{path}/history", params=query), 422, "invalid_input")


@pytest.mark.parametrize("query", [{"kinds": "x"}, {"after": -1}, {"first": 3}], ids=str)
def test_a_stream_that_cannot_be_is_refused(http, query):
    """Before it begins."""
    path = create(http)

    assert_problem(http.get(f"{path}/events", params=query), 422, "invalid_input")


def test_a_model_that_is_not_there_has_no_history(http):
    """404, for both."""
    for call in ("history", "events"):
        answer = http.get(f"/v1/models/nobody/{call}")
        assert_problem(answer, 404, "model_not_found")


def test_a_fork_begins_its_own(http):
    """What happened to the other model happened to that."""
    path = create(http)
    Worker(http, path).push()
    saved = http.post(f"{path}/checkpoints").json()["id"]
    name = new_name()

    http.post(f"{path}/checkpoints/{saved}/fork", json={"name": name}).raise_for_status()

    found = history(http, f"/v1/models/{name}")
    assert kinds(found) == ["start"]
    assert found["series"] == {}


def test_a_model_of_a_deleted_ones_name_begins_anew(http):
    """The file went with the folder."""
    path = create(http)
    Worker(http, path).push()
    http.delete(path).raise_for_status()
    create(http, path.rpartition("/")[2])

    assert kinds(history(http, path)) == ["start"]


def test_a_listener_hears_what_happens_and_goes_on_where_it_was(http):
    """`id` is what it says when it comes again, in the header or the query."""
    path = create(http)
    worker = Worker(http, path)

    with http.stream("GET", f"{path}/events") as stream:
        heard = messages(stream)
        hello = next(heard)
        worker.push(metrics={"loss": 0.5})
        first = next(heard)
    worker.push()
    again = []
    for options in ({"headers": {"Last-Event-ID": first["id"]}}, {"params": {"after": 0}}):
        with http.stream("GET", f"{path}/events", **options) as stream:
            heard = messages(stream)
            next(heard)
            again.append(next(heard))

    assert stream.headers["content-type"].startswith("text/event-stream")
    assert int(hello["id"]) == int(first["id"]) - 1
    assert first["event"] == "step"
    assert json.loads(first["data"])["metrics"] == {"w0": {"loss": 0.5}}
    assert (again[0]["event"], int(again[0]["id"])) == ("step", int(first["id"]) + 1)
    assert again[1]["event"] == "start"


def test_who_goes_away_is_forgotten(server, http):
    """A closed connection leaves no listener behind."""
    path = create(http)
    with http.stream("GET", f"{path}/events") as stream:
        heard = messages(stream)  # who lets go of it closes the connection
        next(heard)
        listening = history_of(server, path).listeners

    deadline = time.monotonic() + servers.DEADLINE_S
    while history_of(server, path).listeners:
        assert time.monotonic() < deadline
        http.get("/healthz")
    assert listening == 1


def test_a_deleted_model_ends_its_streams(http):
    """There is nothing to come."""
    path = create(http)
    with http.stream("GET", f"{path}/events") as stream:
        heard = messages(stream)
        next(heard)
        with httpx.Client(base_url=http.base_url, trust_env=False) as other:
            other.delete(path).raise_for_status()

        assert list(heard) == []


def test_a_token_that_is_revoked_hears_no_more(tmp_path, monkeypatch):
    """A stream has no end of its own: it would go on for as long as its listener likes."""
    monkeypatch.setattr(routes, "ASK_AGAIN_S", 0.0)
    tokens = TokenStore(tmp_path)
    admin, read = tokens.create("admin"), tokens.create("read")
    with (
        servers.hosted(tmp_path) as server,
        servers.http(server.url, admin) as http,
        servers.http(server.url, read) as listening,
    ):
        path = create(http)
        with listening.stream("GET", f"{path}/events") as stream:
            heard = messages(stream)
            next(heard)
            Worker(http, path, "before")
            assert next(heard)["event"] == "join"

            tokens.revoke(read.split("_")[2])
            Worker(http, path, "after")

            assert list(heard) == []


def test_a_stop_is_not_held_up_by_who_listens_or_takes_nothing(tmp_path):
    """One waits for an event, one has stopped reading in the middle: the grace is 20 s."""
    with (
        contextlib.ExitStack() as ends,
        servers.hosted(tmp_path) as server,
        servers.http(server.url) as http,
    ):
        path = create(http)
        worker = Worker(http, path)
        host, port = server.url.removeprefix("http://").split(":")
        stuck = socket.create_connection((host, int(port)))
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        ends.callback(stuck.close)
        stuck.sendall(f"GET {path}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        metrics = {f"{n:064}": 1.0 / 3 for n in range(64)}
        with http.stream("GET", f"{path}/events") as stream:
            heard = messages(stream)
            next(heard)
            for _ in range(200):
                worker.push(metrics=metrics)
            begun = time.monotonic()
            server.application.stop_waiting()  # the first part of a stop, on purpose
            list(heard)
        listening = history_of(server, path).listeners
    spent_s = time.monotonic() - begun

    assert listening <= 1
    assert spent_s < 10


def test_a_restart_keeps_the_history_and_kill_9_its_beginning(tmp_path):
    """A stop keeps all; a kill some first part of it, in a file that is whole."""
    with servers.hosted(tmp_path) as server, servers.http(server.url) as http:
        path = create(http, "kept")
        worker = Worker(http, path)
        for _ in range(20):
            worker.push(metrics={"loss": 1.0})
    with servers.served(tmp_path) as process, servers.http(process.url) as http:
        before = history(http, path, kinds=["start", "step"])
        worker.http = http
        for _ in range(90):
            worker.push(metrics={"loss": 2.0})
        process.kill()
    with sqlite3.connect(tmp_path / "kept" / "history.sqlite") as connection:
        check = connection.execute("PRAGMA integrity_check").fetchall()
    with servers.hosted(tmp_path) as server, servers.http(server.url) as http:
        after = history(http, path)
        numbers = after["events"]["number"]

    assert kinds(before) == ["start"] + ["step"] * 20 + ["start"]
    assert check == [("ok",)]
    losses = after["series"]["metrics.loss"]
    assert losses["value"][:20] == [1.0] * 20
    assert losses["version"] == list(range(1, len(losses["version"]) + 1))
    assert kinds(after)[-1] == "start"
    assert numbers == sorted(set(numbers))
