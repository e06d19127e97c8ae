"""Tests of `stepwell.pulls`, driven by hand: what is asked for, and what comes of the answers."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell import calls
from stepwell.calls import Answer
from stepwell.errors import (
    ConnectionFailed,
    InvalidArgument,
    LayoutMismatch,
    StaleIncarnation,
    Unavailable,
    UnexpectedAnswer,
)
from stepwell.pulls import WAIT_S, PullOptions, Pulls
from stepwell.results import Parameters
from stepwell.retry import Patience, Timeout
from stepwell_core.layout import Layout

from tests.client.flow_driver import Script

LAYOUT = Layout.of({"w": np.zeros((2, 2), "f4"), "s": np.zeros((), "f4"), "d": np.zeros(3, "f8")})


def pulls(**timeout):
    """Return pulls of a model that is not there."""
    return Pulls("digits", LAYOUT, Patience(Timeout(**timeout)))


def answer(version=3, layout=LAYOUT, etag='"one:3:x"'):
    """Return parameters of that version, full of ones."""
    header = {"version": version, "incarnation": "one", "loss_scale": 2.0}
    return Answer(header, layout.views(layout.new_arenas(1.0)), etag)


CACHED = Parameters({}, 3, "one", etag='"one:3:x"')
CURRENT = Answer({}, is_current=True)


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that only moves when it is told to."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("stepwell.pulls.time.monotonic", lambda: Clock.now)
    return Clock


def test_a_pull_returns_parameters():
    """Header and payload become one mapping, which knows its ETag."""
    script = Script(answer())

    parameters = script.run(pulls().pull())

    assert parameters["w"].tolist() == [[1, 1], [1, 1]]
    assert (parameters.version, parameters.incarnation) == (3, "one")
    assert (parameters.loss_scale, parameters.etag) == (2.0, '"one:3:x"')
    call = script.calls[0]
    assert (call.target, call.etag, call.dtype) == (
        "/v1/models/digits/parameters", None, "native"
    )  # fmt: skip


def test_options_are_said_in_the_query():
    """Names in the model's order, slot and dtype."""
    script = Script(answer(layout=LAYOUT.select(["w", "d"])))

    script.run(pulls().pull(["d", "w"], "momentum", dtype="bfloat16"))

    (call,) = script.calls
    assert call.target.endswith("/parameters?names=w&names=d&slot=momentum&dtype=bfloat16")
    assert call.dtype == "bfloat16"


def test_all_names_are_said_as_none():
    """Then the answer may go into buffers that are kept."""
    script = Script(answer())

    script.run(pulls().pull(["d", "s", "w"]))

    assert script.calls[0].query == {}


def test_what_is_current_is_the_very_same_object():
    """Its ETag is sent, and nothing comes back."""
    script = Script(CURRENT)

    assert script.run(pulls().pull(cached=CACHED)) is CACHED
    assert script.calls[0].etag == '"one:3:x"'


def test_what_is_not_current_comes_anew():
    """As without `cached`."""
    parameters = Script(answer(4)).run(pulls().pull(cached=CACHED))

    assert parameters.version == 4


@pytest.mark.parametrize(
    ("options", "incarnation"),
    [
        ({"incarnation": "mine"}, {"incarnation": "mine"}),
        ({"cached": CACHED}, {"incarnation": "one"}),
        ({}, {}),
    ],
)
def test_a_wait_is_said_with_the_history_of_the_version(clock, options, incarnation):
    """A version of another history would mean nothing."""
    script = Script(answer())

    script.run(pulls().pull(min_version=4, wait_s=2.5, **options))

    assert script.calls[0].query == {"min_version": 4, **incarnation, "wait_s": 2.5}


def test_a_wait_may_come_to_nothing():
    """Then there is what there is, of an older version."""
    assert Script(answer(3)).run(pulls().pull(min_version=9, wait_s=1)).version == 3


def test_a_long_wait_is_several_requests(clock):
    """All but the last ask for the smallest tensor: they too are answered in the end."""
    flow = pulls().pull(min_version=5, wait_s=50, into=lambda *piece: None)
    calls = [next(flow)]
    for _ in range(2):
        clock.now += WAIT_S
        calls.append(flow.send(answer(4, LAYOUT.select(["s"]))))
    with pytest.raises(StopIteration) as stop:
        flow.send(answer(4))

    assert [call.query.get("names") for call in calls] == [["s"], ["s"], None]
    assert [call.query["wait_s"] for call in calls] == [20, 20, 10]
    assert stop.value.value.version == 4


def test_a_long_wait_ends_when_the_version_is_there(clock):
    """The parameters are asked for at once."""
    script = Script(answer(5, LAYOUT.select(["s"])), answer(5))

    script.run(pulls().pull(min_version=5, wait_s=1000))

    assert [call.query["wait_s"] for call in script.calls] == [WAIT_S, 0]


def test_no_request_waits_as_long_as_the_read_timeout(clock):
    """It would be given up before the server answers."""
    flow = pulls(read_s=3).pull(min_version=5, wait_s=10)

    call = next(flow)
    flow.close()

    assert call.query["wait_s"] == 2


def test_a_history_that_was_cut_is_told():
    """There will never be such a version of it."""
    with pytest.raises(StaleIncarnation):
        Script(StaleIncarnation("x", status=409)).run(pulls().pull(min_version=5))


def test_arrays_of_the_caller_are_checked_before_anything_is_asked():
    """Nothing is sent."""
    with pytest.raises(LayoutMismatch):
        Script().run(pulls().pull(out={"w": np.zeros((2, 2), "f4")}))


def test_the_payload_goes_where_it_is_wanted():
    """A transport finds the destination in the call."""
    out = {name: np.zeros_like(array) for name, array in LAYOUT.views(LAYOUT.new_arenas()).items()}
    into = []

    for options in ({"out": out}, {"into": lambda *piece: into.append(piece)}, {}):
        flow = pulls().pull(**options)
        destination = next(flow).destination
        for view in destination.begin(LAYOUT):
            view[:] = bytes(view.nbytes)
        destination.note(0)
        flow.close()

        expected = {"out": out, "into": {}}.get(next(iter(options), ""))
        assert expected is None or dict(destination.tensors()) == expected
    assert [piece[0] for piece in into] == ["w", "s", "d"]


@pytest.mark.parametrize("error", [ConnectionFailed("x"), Unavailable("x", status=503)])
def test_a_pull_into_a_callback_is_not_repeated_once_it_was_called(error):
    """The next answer may be of another version, and the callback has seen a part of this one."""
    flow = pulls().pull(into=lambda *piece: None)
    destination = next(flow).destination
    flow.throw(error)
    call = flow.send(Answer({}))  # before the first piece it is tried again
    assert call.destination is destination

    for view in destination.begin(LAYOUT):
        view[:] = bytes(view.nbytes)
    destination.note(0)

    with pytest.raises(type(error)):
        flow.throw(error)


@pytest.mark.parametrize("number", [2, "1", None, True])
def test_an_answer_in_another_protocol_is_not_misread(number):
    """A newer server may mean something else by the same bytes."""
    from stepwell.calls import expected_payload

    call = calls.pull("m", LAYOUT)
    header = {"protocol": number, "layout": LAYOUT.hash, "tensors": None, "dtype": "native"}

    with pytest.raises(UnexpectedAnswer, match="Received an answer in protocol"):
        expected_payload(call, header)


def test_an_answer_of_another_dtype_is_told():
    """A server that does not know the option sends what it always sent."""
    from stepwell.calls import expected_payload

    flow = pulls().pull(dtype="float16")
    call = next(flow)
    flow.close()

    header = {"layout": LAYOUT.hash, "tensors": None}
    assert expected_payload(call, {**header, "dtype": "float16"}) is LAYOUT
    with pytest.raises(UnexpectedAnswer, match="an older server"):
        expected_payload(call, header)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float32"}, "native, float16 or bfloat16"),
        ({"dtype": 16}, "native, float16 or bfloat16"),
        ({"cached": {}}, "`cached` is what an earlier pull returned. Received: dict"),
        ({"min_version": -1}, "`min_version` is a version"),
        ({"min_version": 1.0}, "`min_version` is a version"),
        ({"min_version": True}, "`min_version` is a version"),
        ({"wait_s": -1}, "`wait_s` is in seconds"),
        ({"wait_s": float("inf")}, "`wait_s` is in seconds"),
        ({"wait_s": "1"}, "`wait_s` is in seconds"),
        ({"out": {}, "into": print}, "Received: both"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    """Nothing is sent."""
    with pytest.raises(InvalidArgument, match=words):
        Script().run(pulls().pull(**options))


def test_every_option_is_described():
    """`PullOptions` is where a user looks them up."""
    for name in PullOptions.__annotations__:
        assert f"        {name}: " in PullOptions.__doc__
