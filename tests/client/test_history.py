"""The history as the client reads it: answers, streams, and what breaks."""

from __future__ import annotations

import json

import pytest
import stepwell
from stepwell import history
from stepwell.calls import Answer
from stepwell.errors import (
    ConnectionFailed,
    Forbidden,
    InvalidArgument,
    InvalidInput,
    ModelNotFound,
    ShuttingDown,
    UnexpectedAnswer,
)
from stepwell.history import Listening
from stepwell.retry import Patience, Timeout

from tests.client.adapter import PATIENT
from tests.client.models import ONES, PARAMETERS
from tests.servers import hosted

COLUMNS = {"number": [4], "time": [1.5], "kind": ["join"], "version": [2], "fields": [{"a": 1}]}
SERIES = {"loss": {"version": [1, 2], "time": [0.5, 1.5], "value": [3.0, 2.0]}}


def message(number, kind="step", version=1, **fields):
    """Return an event as the server sends it."""
    data = {"number": number, "time": 2.5, "kind": kind, "version": version, **fields}
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def listening(after=None, kinds=None, **timeout):
    """Return what listens to a model."""
    return Listening("m", after, kinds, Patience(Timeout(**timeout)))


def test_a_range_is_asked_for_with_what_was_given_alone():
    """The server's defaults are its own."""
    call = history.ask("m", from_version=3, kinds="join", points=10)

    assert call.target == "/v1/models/m/history?from_version=3&kinds=join&points=10"


def test_a_history_is_read_from_columns():
    """Series as arrays, events one by one."""
    fields = {"series": SERIES, "events": COLUMNS, "left_out": 5, "lost": 1}

    found = history.history_of(Answer(fields))

    assert found.series["loss"].value.tolist() == [3.0, 2.0]
    assert found.series["loss"].version.dtype == "int64"
    assert found.events == [history.HistoryEvent(4, 1.5, "join", 2, {"a": 1})]
    assert (found.left_out, found.lost) == (5, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"series": [], "events": COLUMNS, "left_out": 0, "lost": 0},
        {"series": {"loss": {}}, "events": COLUMNS, "left_out": 0, "lost": 0},
        {"series": {}, "events": {}, "left_out": 0, "lost": 0},
        {"series": {}, "events": {**COLUMNS, "time": []}, "left_out": 0, "lost": 0},
        {"series": SERIES, "events": COLUMNS},
    ],
    ids=range(6),
)
def test_what_is_no_history_is_said_to_be_none(fields):
    """Whatever some other server answers."""
    with pytest.raises(UnexpectedAnswer):
        history.history_of(Answer(fields))


def test_events_are_read_however_the_stream_is_cut():
    """Byte by byte as well as in one piece; comments and places are no events."""
    stream = b"retry: 1000\nid: 6\n\n" + message(7, loss=1) + b": still here\nid: 8\n\n"
    stream += message(9, "join")
    whole, bytewise = listening(), listening()

    events = whole.feed(stream)
    same = [event for byte in stream for event in bytewise.feed(bytes([byte]))]

    assert events == same
    assert [(e.number, e.kind, e.fields) for e in events] == [
        (7, "step", {"loss": 1}),
        (9, "join", {}),
    ]
    assert whole.call().query["after"] == 9


def test_a_broken_stream_is_taken_up_behind_the_last_event():
    """Half an event that came is forgotten; it comes again whole."""
    heard = listening(kinds=["step"])
    heard.feed(message(7) + message(8)[:10])

    call = heard.call()
    events = heard.feed(message(8))

    assert call.target == "/v1/models/m/events?kinds=step&after=7"
    assert [event.number for event in events] == [8]


def test_what_was_missed_is_in_the_log(caplog):
    """It cannot be had any more, but for `history()`."""
    heard = listening(after=3)

    events = heard.feed(b'event: missed\ndata: {"first": 4, "last": 90}\n\n' + message(91))

    assert [event.number for event in events] == [91]
    assert "4 to 90" in caplog.text


@pytest.mark.parametrize(
    "stream",
    [
        b"id: x\n\n",
        b"id: 1\ndata: nonsense\n\n",
        b"id: 1\ndata: {}\n\n",
        b"id: 1\ndata: []\n\n",
        b"data: 7\n\n",
        b"x" * ((1 << 20) + 1),
    ],
    ids=range(6),
)
def test_what_is_no_event_ends_the_stream(stream):
    """Nothing is made up, and nothing is kept without an end."""
    with pytest.raises(UnexpectedAnswer):
        listening().feed(stream)


def test_a_stream_goes_on_after_what_may_pass_and_not_after_the_rest():
    """A restart passes; a token that may not read does not."""
    heard = listening()
    heard.feed(message(1))

    pauses = [heard.pause_s(error) for error in (None, ShuttingDown(""), ConnectionFailed(""))]

    assert 0 < pauses[0] < pauses[1] < pauses[2]
    for error in (Forbidden(""), ModelNotFound("")):
        with pytest.raises(type(error)):
            heard.pause_s(error)


def test_a_server_that_stays_away_is_given_up():
    """After the time that the user gave; one that was never there, sooner."""
    heard = listening(retry_s=0.01, connect_s=0.01)

    with pytest.raises(ConnectionFailed):
        heard.pause_s(ConnectionFailed(""))


@pytest.mark.parametrize("after", [-1, 1.5, "7", True])
def test_a_number_of_an_event_is_a_number(after):
    """Before anything is sent."""
    with pytest.raises(InvalidArgument):
        listening(after)


def test_a_model_tells_its_history(clients, server):
    """Both clients; what the worker said, and what people did."""
    with clients.client(server.url, timeout=PATIENT) as client:
        model = client.create_model(
            "told-" + type(clients).__name__.lower(), PARAMETERS, optimizer=stepwell.SGD(1.0)
        )
        with model.worker("w0") as worker:
            worker.pull()
            for loss in (3.0, 2.0):
                worker.push(ONES, metrics={"loss": loss})
        model.set_hyperparameters(learning_rate=0.5)

        found = model.history()
        steps = model.history(from_version=2, kinds="step", points=10)
        alone = model.history(series=False)
        with pytest.raises(InvalidInput):
            model.history(kinds="nonsense")

    assert (alone.events, alone.series) == (found.events, {})
    assert found.series["metrics.loss"].value.tolist() == [3.0, 2.0]
    assert found.series["gradient_norm"].value.tolist() == [4.0, 4.0]
    assert [event.kind for event in found.events] == ["start", "join", "leave", "hyperparameters"]
    assert [(event.version, event.fields["workers"]) for event in steps.events] == [(2, ["w0"])]


def test_a_model_is_listened_to(clients, server):
    """From the beginning of what the server remembers, then as it happens; a refusal is raised."""
    with clients.client(server.url, timeout=PATIENT) as client:
        name = "heard-" + type(clients).__name__.lower()
        model = client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(1.0))
        events = model.events(after=0)
        first = next(events)
        with model.worker("w0") as worker:
            worker.push(ONES, metrics={"loss": 3.0})
        heard = [next(events) for _ in range(3)]
        events.close()
        with pytest.raises(InvalidInput):
            next(model.events(kinds="nonsense"))
        client.delete_model(name)
        with pytest.raises(ModelNotFound):
            next(model.events())

    assert first.kind == "start"
    assert [event.kind for event in heard] == ["join", "step", "leave"]
    assert heard[1].fields["metrics"] == {"w0": {"loss": 3.0}}


def test_listening_goes_on_over_a_restart(tmp_path):
    """The stream ends with the server, and begins again where it was."""
    with hosted(tmp_path) as server:
        port = server.url.rpartition(":")[2]
        client = stepwell.Client(server.url, timeout=PATIENT)
        model = client.create_model("m", PARAMETERS, optimizer=stepwell.SGD(1.0))
        events = model.events(after=0)
        before = next(events)
    with hosted(tmp_path, port=int(port)):
        after = next(events)
        events.close()
        client.close()

    assert (before.kind, after.kind) == ("start", "start")
    assert after.number > before.number
