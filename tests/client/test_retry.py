"""Tests of `stepwell.retry`: when a call is made again, and when not, on a clock of ours."""

from __future__ import annotations

import pytest
from stepwell import retry
from stepwell.calls import Answer, Call
from stepwell.errors import (
    CertificateRefused,
    ConnectionFailed,
    Fenced,
    InvalidArgument,
    ShuttingDown,
    TimedOut,
    UnexpectedAnswer,
)
from stepwell.retry import Patience, Sleep, Timeout, repeatedly

GET = Call("GET", "/v1")
ONCE = Call("POST", "/v1", can_repeat=False)


class Clock:
    """Time that passes when a flow sleeps or a call takes it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Return the clock that `retry` reads."""
    clock = Clock()
    monkeypatch.setattr(retry.time, "monotonic", clock)
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)
    return clock


def fail_always(flow, clock, error, call_s=0.0):
    """Answer every call of `flow` with `error`; returns what came of it and the pauses."""
    pauses = []
    step = next(flow)
    try:
        while True:
            if isinstance(step, Sleep):
                pauses.append(step.seconds)
                clock.now += step.seconds
                step = flow.send(Answer({}))
            else:
                clock.now += call_s
                step = flow.throw(error)
    except type(error) as raised:
        return raised, pauses


def reached(**timeout):
    """Return the patience of a client whose server answered before."""
    return Patience(Timeout(**timeout), was_reached=True)


def test_an_answer_is_returned_and_remembered(clock):
    """One call, one answer; from then on the server counts as reached."""
    patience = Patience(Timeout())
    flow = repeatedly(GET, patience)
    answer = Answer({"a": 1})

    assert next(flow) is GET
    with pytest.raises(StopIteration) as stop:
        flow.send(answer)

    assert stop.value.value is answer
    assert patience.was_reached


@pytest.mark.parametrize(
    "error",
    [ConnectionFailed("x"), TimedOut("x"), ShuttingDown("x", status=503)],
    ids=lambda error: error.code,
)
def test_pauses_grow_until_the_deadline_and_the_last_error_is_raised(clock, error):
    """A server that comes back within `retry_s` is waited for, and not longer."""
    raised, pauses = fail_always(repeatedly(GET, reached(retry_s=10)), clock, error)

    assert raised is error
    assert pauses[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert 8 < clock.now - 1000 <= 10


def test_a_pause_is_drawn_so_that_workers_do_not_come_back_together(monkeypatch):
    """Each pause lies between one half and the whole of its length."""
    drawn = []
    monkeypatch.setattr(retry.random, "uniform", lambda *limits: drawn.append(limits) or 0.5)
    flow = repeatedly(GET, reached())

    next(flow)
    pause = flow.throw(ConnectionFailed("x"))

    assert drawn == [(0.5, 1.0)]
    assert pause == Sleep(0.025)


def test_a_server_that_was_never_reached_is_given_up_after_connect_s(clock):
    """A wrong address is told soon; the 60 seconds are for a server that restarts."""
    patience = Patience(Timeout(connect_s=1))

    fail_always(repeatedly(GET, patience), clock, ConnectionFailed("x", was_sent=False))

    assert clock.now - 1000 <= 1


def test_a_long_wait_is_told_once_and_so_is_its_end(clock, caplog):
    """A program that waits for a restart would seem to hang; one that waits a moment would not."""
    patience = reached()
    flow = repeatedly(GET, patience)
    next(flow)

    for _ in range(8):
        clock.now += flow.throw(ConnectionFailed("It is away")).seconds
        flow.send(Answer({}))
    during = [record.getMessage() for record in caplog.records]
    with pytest.raises(StopIteration):
        flow.send(Answer({}))
    again = repeatedly(GET, patience)
    next(again)
    with pytest.raises(StopIteration):
        again.send(Answer({}))

    assert during == ["It is away. Waiting for it, up to 60 s"]
    assert [r.getMessage() for r in caplog.records][1:] == ["The server answers again, after 7 s"]


def test_a_short_wait_and_one_that_is_given_up_soon_are_not_told(clock, caplog):
    """The first is over before anyone wonders, and the second ends in an error with the reason."""
    flow = repeatedly(GET, reached())
    next(flow)

    for _ in range(4):
        clock.now += flow.throw(ConnectionFailed("x")).seconds
        flow.send(Answer({}))
    with pytest.raises(StopIteration):
        flow.send(Answer({}))
    fail_always(repeatedly(GET, Patience(Timeout())), clock, ConnectionFailed("x"))

    assert not caplog.records


def test_a_server_that_said_503_counts_as_reached(clock):
    """It is there and starts or stops, so it is waited for."""
    patience = Patience(Timeout(connect_s=1, retry_s=10))
    flow = repeatedly(GET, patience)
    next(flow)
    flow.throw(ShuttingDown("x"))
    flow.send(Answer({}))

    flow.throw(ConnectionFailed("x"))

    assert patience.limit_s(ConnectionFailed("x")) == 10


@pytest.mark.parametrize(
    "error",
    [UnexpectedAnswer("x"), CertificateRefused("x"), Fenced("x", status=409)],
    ids=lambda error: error.code,
)
def test_what_will_not_change_is_raised_at_once(clock, error):
    """Nobody waits a minute for something that is not a Stepwell server, or for a refusal."""
    raised, pauses = fail_always(repeatedly(GET, reached()), clock, error)

    assert raised is error
    assert pauses == []


@pytest.mark.parametrize(
    ("error", "is_repeated"),
    [
        (ConnectionFailed("x", was_sent=True), False),
        (TimedOut("x", was_sent=True), False),
        (ConnectionFailed("x", was_sent=False), True),
        (ShuttingDown("x"), True),
    ],
)
def test_a_call_that_does_harm_twice_is_repeated_only_if_it_cannot_have_arrived(
    clock, error, is_repeated
):
    """A checkpoint or a restore is not made twice because an answer was lost."""
    _, pauses = fail_always(repeatedly(ONCE, reached()), clock, error)

    assert bool(pauses) is is_repeated


def test_slow_calls_count_against_the_deadline(clock):
    """`retry_s` is for an answer in all, not for the pauses alone."""
    _, pauses = fail_always(repeatedly(GET, reached(retry_s=60)), clock, TimedOut("x"), call_s=30)

    assert len(pauses) == 1


@pytest.mark.parametrize("value", [0, -1, float("nan"), "5", None, True])
def test_a_timeout_that_cannot_be_is_refused(value):
    """The sentence names the field and what was received."""
    with pytest.raises(InvalidArgument, match=r"`read_s` is in seconds, > 0\. Received: "):
        Timeout(read_s=value)
