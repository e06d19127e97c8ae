"""Tests of `stepwell.session`: the flows of a worker, driven by hand.

What matters most is here: an answer is lost in every way there is, and the next push still does
neither repeat nor skip anything.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from stepwell import session as session_module
from stepwell.calls import Answer
from stepwell.errors import (
    ConnectionFailed,
    Fenced,
    Forbidden,
    InternalError,
    MalformedMessage,
    NonFiniteGradient,
    PayloadMismatch,
    PushInFlight,
    PushNotFound,
    SessionExpired,
    ShapeMismatch,
    ShuttingDown,
    StaleIncarnation,
    TimedOut,
    UnexpectedAnswer,
    UnknownSession,
)
from stepwell.retry import Patience, Timeout
from stepwell.session import Session
from stepwell_core.layout import Layout

from tests.client.flow_driver import Script, header_of, opened, result

LAYOUT = Layout.of({"w": np.zeros(3, np.float32)})
GRADIENT = {"w": np.ones(3, np.float32)}

OPEN, PUSH, CLOSE = "POST /workers", "POST /gradients", "DELETE /workers/w0"


def ask(sequence=0):
    """Return the question for a push."""
    return f"GET /workers/w0/pushes/{sequence}"


def new_session(retry_s=60.0, **hyperparameters):
    """Return a session that is not open; with a tiny `retry_s` nothing is repeated."""
    patience = Patience(Timeout(retry_s=retry_s), was_reached=True)
    return Session("digits", LAYOUT, "w0", hyperparameters, patience)


def open_session(**options):
    """Return a session that was opened with epoch 1."""
    session = new_session(**options)
    Script(opened()).run(session.open())
    return session


def unresolved_session(**options):
    """Return a session whose push 0 was sent and never answered."""
    session = open_session(**options)
    flow = session.push(GRADIENT)
    next(flow)
    flow.close()
    return session


def previous(epoch=1, last_sequence=0, **fields):
    """Return what the server says of the session before."""
    return {"epoch": epoch, "last_sequence": last_sequence, "result": result(**fields)}


def parameters_answer(version=3, incarnation="one", **fields):
    """Return the answer to a pull."""
    header = {"version": version, "incarnation": incarnation, **fields}
    return Answer(header, LAYOUT.views(LAYOUT.new_arenas(2.0)))


# What a push says


def test_the_first_call_opens_the_session():
    """`model.worker("w0").push(...)` works without `with`."""
    script = Script(opened(epoch=7), result())

    script.run(new_session().push(GRADIENT))

    header = script.header(1)
    assert script.asked == [OPEN, PUSH]
    assert (header["worker"], header["epoch"], header["sequence"]) == ("w0", 7, 0)
    assert (header["incarnation"], header["version"]) == ("one", None)


def test_pushes_are_numbered_one_after_the_other():
    """0, 1, 2 within a session, and from 0 again in the next."""
    session = open_session()
    first, second = Script(result()), Script(result())

    first.run(session.push(GRADIENT))
    second.run(session.push(GRADIENT))
    Script(opened(epoch=2)).run(session.open())
    third = Script(result())
    third.run(session.push(GRADIENT))

    assert [script.header(0)["sequence"] for script in (first, second, third)] == [0, 1, 0]
    assert third.header(0)["epoch"] == 2


def test_a_gradient_counts_as_computed_at_the_parameters_pulled_last():
    """Version and loss scale of the last pull go into the header."""
    session = open_session()
    Script(parameters_answer(version=5, loss_scale=8.0)).run(session.pull())
    script = Script(result(loss_scale=4.0))

    script.run(session.push(GRADIENT, weight=3, metrics={"loss": np.float32(0.5)}))

    header = script.header(0)
    assert (header["version"], header["loss_scale"]) == (5, 8.0)
    assert (header["weight"], header["metrics"]) == (3.0, {"loss": 0.5})
    assert session.loss_scale == 4.0


def test_a_push_says_its_kind_and_a_delta_says_no_loss_scale():
    """It was multiplied by none."""
    session = open_session()
    Script(parameters_answer(loss_scale=8.0)).run(session.pull())
    gradient, delta = Script(result()), Script(result())

    gradient.run(session.push(GRADIENT))
    delta.run(session.push(GRADIENT, kind="delta"))

    headers = [script.header(0) for script in (gradient, delta)]
    assert [(h["kind"], h["loss_scale"]) for h in headers] == [("gradient", 8.0), ("delta", None)]


def test_options_of_a_pull_go_along_with_the_sessions_history():
    """A version to wait for is one of the history that the session is in."""
    script = Script(parameters_answer(5))

    script.run(open_session().pull(min_version=5, wait_s=0, dtype="float16"))

    assert script.calls[0].query == {
        "dtype": "float16", "min_version": 5, "incarnation": "one", "wait_s": 0.0
    }  # fmt: skip


def test_parameters_that_are_current_count_as_pulled_and_say_no_loss_scale():
    """The loss scale may have been halved by a push that changed no parameter."""
    session = open_session()
    cached = Script(parameters_answer(5, loss_scale=8.0)).run(session.pull())
    session.version, session.loss_scale = None, 4.0

    assert Script(Answer({}, is_current=True)).run(session.pull(cached=cached)) is cached

    assert (session.version, session.loss_scale) == (5, 4.0)


def test_a_session_that_is_closed_keeps_no_memory_for_pulls():
    """Two pulls of a large model would stay for as long as the worker object."""
    session = open_session()
    script = Script(parameters_answer())
    script.run(session.pull())
    script.calls[0].destination.begin(LAYOUT)
    kept = len(session._pulls.buffers._kept)

    Script(Answer({})).run(session.close())

    assert (kept, len(session._pulls.buffers._kept)) == (1, 0)


def test_a_header_too_large_to_be_sent_leaves_nothing_unresolved():
    """It never left this machine, so there is nothing to ask the server about."""
    session = open_session()
    flow = session.push(GRADIENT, metrics={f"metric {index}": 0.0 for index in range(20_000)})
    call = next(flow)
    with pytest.raises(MalformedMessage) as caught:
        call.body  # noqa: B018
    with pytest.raises(MalformedMessage):
        flow.throw(caught.value)

    script = Script(result())
    script.run(session.push(GRADIENT))

    assert script.asked == [PUSH]


def test_parameters_of_another_history_do_not_count_as_pulled():
    """The next push is refused as stale, instead of going on from numbers that do not fit."""
    session = open_session()

    Script(parameters_answer(version=5, incarnation="two")).run(session.pull())

    assert session.version is None
    assert session.incarnation == "one"


def test_callables_are_evaluated_once_a_push_even_if_it_is_repeated():
    """Each attempt sends the same bytes."""
    seen = []
    session = open_session(learning_rate=lambda: seen.append(1) or 0.5 / len(seen), beta_1=0.25)
    script = Script(TimedOut("x"), result())

    script.run(session.push(GRADIENT))
    Script(result()).run(session.push(GRADIENT, hyperparameters={"beta_1": lambda: 0.125}))

    assert len(seen) == 2
    assert script.header(0)["hyperparameters"] == {"learning_rate": 0.5, "beta_1": 0.25}
    assert script.calls[0] is script.calls[1]


def test_push_pull_returns_what_came_with_the_answer():
    """One round trip; its version is the one of the next gradient."""
    session = open_session()
    answer = parameters_answer(version=1)
    answer.fields["result"] = result()

    parameters = Script(answer).run(session.push_pull(GRADIENT))

    assert parameters["w"].tolist() == [2, 2, 2]
    assert session.version == 1
    assert Script().run(session.resolve()).parameters is None  # a model is not kept alive here


def test_push_pull_pulls_if_the_push_had_to_wait():
    """The answer to the question has no parameters in it."""
    session = open_session()
    script = Script(result("waiting"), result(), parameters_answer(version=4))

    parameters = script.run(session.push_pull(GRADIENT))

    assert script.asked == [PUSH, ask(), "GET /parameters"]
    assert parameters.version == session.version == 4


# Answers that are lost


@pytest.mark.parametrize("error", [ConnectionFailed("x"), TimedOut("x"), ShuttingDown("x")])
def test_a_lost_answer_is_asked_for_with_the_same_bytes(error):
    """The retry has the same sequence, so the server knows it."""
    session = open_session()
    script = Script(error, error, result(duplicate=True))

    found = script.run(session.push(GRADIENT))

    assert found.duplicate
    assert script.calls[0] is script.calls[1] is script.calls[2]
    assert session.sequence == 1


def test_a_push_that_waits_is_asked_for_without_its_body():
    """After 20 s the server says `waiting`, and the client does not send 100 MB again."""
    session = open_session()
    script = Script(result("waiting"), result("waiting"), TimedOut("x"), result())

    found = script.run(session.push(GRADIENT))

    assert found.outcome == "applied"
    assert script.asked == [PUSH, ask(), ask(), ask()]
    assert script.calls[1].query == {
        "epoch": 1,
        "incarnation": "one",
        "wait_s": session_module.WAIT_S,
    }


def test_a_push_that_waits_says_so(caplog):
    """Nobody has to guess why a program stands still."""
    script = Script(result("waiting"), result("waiting"), result())

    script.run(open_session().push(GRADIENT))

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "waits for other workers" in record.getMessage()


@pytest.mark.parametrize("error", [PushNotFound("x"), UnknownSession("x")])
def test_a_push_that_waited_when_the_server_restarted_is_sent_again(error):
    """Pending pushes are gone after a restart, and a resend is admitted."""
    session = open_session()
    script = Script(result("waiting"), error, result())

    script.run(session.push(GRADIENT))

    assert script.asked == [PUSH, ask(), PUSH]
    assert script.calls[0] is script.calls[2]
    assert session.sequence == 1


def test_after_an_unresolved_push_the_next_one_first_learns_that_it_was_applied():
    """Its number is used up, so the next gradient gets the next."""
    session = unresolved_session()
    script = Script(result(), result(version=2))

    script.run(session.push(GRADIENT))

    assert script.asked == [ask(0), PUSH]
    assert script.header(1)["sequence"] == 1


def test_after_an_unresolved_push_the_next_one_waits_for_it_if_it_waits():
    """The barrier may still contain it."""
    session = unresolved_session()
    script = Script(result("waiting"), result(), result())

    script.run(session.push(GRADIENT))

    assert script.asked == [ask(0), ask(0), PUSH]


def test_an_unresolved_push_that_the_server_does_not_know_is_shut_out():
    """It may still be on its way; in a new epoch it can do nothing any more."""
    session = unresolved_session()
    script = Script(PushNotFound("x"), opened(epoch=2, previous=None), result())

    script.run(session.push(GRADIENT))

    assert script.asked == [ask(0), OPEN, PUSH]
    assert (script.header(2)["epoch"], script.header(2)["sequence"]) == (2, 0)
    assert session.sequence == 1


def test_an_unresolved_push_that_arrives_between_question_and_new_epoch_is_found():
    """`previous` is what the server says at the moment in which the old epoch ends."""
    session = unresolved_session()
    script = Script(PushNotFound("x"), opened(epoch=2, previous=previous(version=9)))

    found = script.run(session.resolve())

    assert (found.version, found.duplicate) == (9, True)


@pytest.mark.parametrize(
    "told",
    [
        previous(epoch=0),
        previous(last_sequence=-1),
        None,
    ],
    ids=["another session", "no push", "nobody"],
)
def test_what_other_sessions_did_is_not_taken_for_the_push(told):
    """Only the same epoch and sequence are this push."""
    session = unresolved_session()

    found = Script(PushNotFound("x"), opened(epoch=2, previous=told)).run(session.resolve())

    assert found is None


def test_a_result_of_another_history_is_not_taken_for_the_push():
    """After a restore the same numbers may stand for other bytes."""
    session = unresolved_session()
    script = Script(PushNotFound("x"), opened(epoch=2, previous=previous(), incarnation="two"))

    assert script.run(session.resolve()) is None


def test_a_session_renewed_by_itself_keeps_its_history():
    """If the model was restored meanwhile, the push must be told so, and not go through."""
    session = unresolved_session()
    Script(parameters_answer(version=5)).run(session.pull())
    script = Script(
        PushNotFound("x"),
        opened(epoch=2, incarnation="two", loss_scale=2.0),
        StaleIncarnation("x", status=409),
    )

    with pytest.raises(StaleIncarnation):
        script.run(session.push(GRADIENT))

    assert script.header(2)["incarnation"] == "one"
    assert (script.header(2)["version"], script.header(2)["loss_scale"]) == (5, None)


def test_a_gradient_keeps_its_loss_scale_when_the_push_before_is_resolved():
    """It was computed before the outcome of the lost push was known."""
    session = unresolved_session()
    Script(parameters_answer(loss_scale=8.0)).run(session.pull())
    script = Script(result(loss_scale=4.0), result(loss_scale=4.0))

    script.run(session.push(GRADIENT))

    assert script.header(1)["loss_scale"] == 8.0
    assert session.loss_scale == 4.0


def test_while_the_outcome_cannot_be_learned_nothing_is_pushed():
    """The question fails, so the push fails, and the next one asks again."""
    session = unresolved_session(retry_s=0.001)
    for _ in range(2):
        script = Script(ConnectionFailed("x"))
        with pytest.raises(ConnectionFailed):
            script.run(session.push(GRADIENT))
        assert script.asked == [ask(0)]


def test_a_resolved_push_is_told_again_without_asking():
    """`resolve()` after a push that went well, or twice, is free."""
    session = open_session()
    assert Script().run(session.resolve()) is None
    pushed = Script(result(version=4)).run(session.push(GRADIENT))

    assert Script().run(session.resolve()) == pushed


def test_push_pull_that_fails_after_the_push_says_so_in_resolve():
    """Only the pull was lost: the gradient must not be pushed again."""
    session = open_session(retry_s=0.001)
    script = Script(result("waiting"), result(version=4), ConnectionFailed("x"))
    with pytest.raises(ConnectionFailed):
        script.run(session.push_pull(GRADIENT))

    assert Script().run(session.resolve()).version == 4


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_an_interrupted_push_is_unresolved(interruption):
    """Ctrl-C in the middle of a push: nobody knows what the server got."""
    session = open_session()
    flow = session.push(GRADIENT)
    next(flow)
    with pytest.raises(type(interruption)):
        flow.throw(interruption)

    script = Script(result(), result())
    script.run(session.push(GRADIENT))

    assert script.asked == [ask(0), PUSH]


def test_an_abandoned_push_is_unresolved():
    """A cancelled task closes its flow; the next push is not refused as a second one."""
    session = open_session()
    flow = session.push(GRADIENT)
    next(flow)
    flow.close()

    script = Script(result(), result())
    script.run(session.push(GRADIENT))

    assert script.asked == [ask(0), PUSH]


# Refusals


def test_a_refused_push_leaves_its_number_free():
    """NaN in the gradient: the next one takes the same number, without a question."""
    session = open_session()
    with pytest.raises(NonFiniteGradient):
        Script(NonFiniteGradient("x", status=422)).run(session.push(GRADIENT))
    script = Script(result())

    script.run(session.push(GRADIENT))

    assert script.asked == [PUSH]
    assert script.header(0)["sequence"] == 0


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("x", status=403),
        InternalError("x", status=500),
        PayloadMismatch("x", status=422),
        UnexpectedAnswer("x"),
        StaleIncarnation("x", status=409),
    ],
    ids=lambda error: error.code,
)
def test_a_refusal_that_does_not_prove_that_nothing_happened_is_unresolved(error):
    """The first attempt may have been applied, and the second refused: the number may be used."""
    session = open_session()
    with pytest.raises(type(error)):
        Script(ConnectionFailed("x"), error).run(session.push(GRADIENT))

    script = Script(result(), result())
    script.run(session.push(GRADIENT))

    assert script.asked == [ask(0), PUSH]
    assert script.header(1)["sequence"] == 1


def test_an_answer_that_cannot_be_read_is_unresolved():
    """`UnexpectedAnswer` from inside the flow: the push may well have been applied."""
    session = open_session()
    with pytest.raises(UnexpectedAnswer):
        Script({"hello": "world"}).run(session.push(GRADIENT))

    script = Script(result(), result())
    script.run(session.push(GRADIENT))

    assert script.asked == [ask(0), PUSH]


def test_a_gradient_that_does_not_fit_is_refused_before_anything_is_sent():
    """The session stays as it was."""
    session = open_session()

    with pytest.raises(ShapeMismatch):
        Script().run(session.push({"w": np.zeros(4, np.float32)}))
    script = Script(result())
    script.run(session.push(GRADIENT))

    assert script.asked == [PUSH]


def test_a_callable_that_raises_leaves_the_session_as_it_was():
    """The user's error is the user's; no push was made."""
    session = open_session(learning_rate=lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        Script().run(session.push(GRADIENT))

    script = Script(result())
    script.run(session.push(GRADIENT, hyperparameters={"learning_rate": 0.5}))
    assert script.asked == [PUSH]


def test_a_fenced_session_never_reopens_by_itself():
    """Or two processes with one name would fence each other for ever."""
    session = open_session()

    for error, asked in [(Fenced("x", status=409), [PUSH]), (Fenced("x", status=409), [ask(0)])]:
        script = Script(error)
        with pytest.raises(Fenced):
            script.run(session.push(GRADIENT))
        assert script.asked == asked


def test_a_session_whose_new_epoch_was_never_told_takes_another_and_is_not_fenced_by_itself():
    """The server gave it and the answer was lost: the old epoch may not push any more."""
    session = unresolved_session(retry_s=1e-9)
    with pytest.raises(TimedOut):
        Script(PushNotFound(""), TimedOut("")).run(session.resolve())

    script = Script(opened(3, previous()), result(version=2))
    pushed = script.run(session.push(GRADIENT))

    assert script.asked == [OPEN, PUSH]
    assert (script.header(1)["epoch"], script.header(1)["sequence"]) == (3, 0)
    assert pushed.version == 2


def test_a_session_that_expired_is_opened_again_and_the_push_made():
    """Nobody took the name, so the worker goes on; the version it pulled still counts."""
    session = open_session()
    Script(parameters_answer(version=5)).run(session.pull())
    script = Script(SessionExpired("x", status=409), opened(epoch=2), result())

    script.run(session.push(GRADIENT))

    header = script.header(2)
    assert script.asked == [PUSH, OPEN, PUSH]
    assert (header["epoch"], header["sequence"], header["version"]) == (2, 0, 5)
    assert session.sequence == 1


def test_a_push_that_was_applied_before_its_session_expired_is_not_made_again():
    """The answer was lost, then the session closed: the new session tells what became of it."""
    session = open_session()
    script = Script(
        ConnectionFailed("x"),
        SessionExpired("x", status=409),
        opened(epoch=2, previous=previous(version=8)),
    )

    found = script.run(session.push(GRADIENT))

    assert (found.version, found.duplicate) == (8, True)
    assert session.sequence == 0


def test_a_session_that_expires_for_ever_is_told():
    """One new session a push, not more."""
    session = open_session()
    expired = SessionExpired("x", status=409)

    with pytest.raises(SessionExpired):
        Script(expired, opened(epoch=2), expired).run(session.push(GRADIENT))


def test_opening_after_a_stale_incarnation_begins_anew():
    """The new history has a new incarnation, and no version was pulled from it yet."""
    session = open_session()
    Script(parameters_answer(version=5)).run(session.pull())
    with pytest.raises(StaleIncarnation):
        Script(StaleIncarnation("x", status=409)).run(session.push(GRADIENT))

    Script(opened(epoch=2, incarnation="two", loss_scale=4.0)).run(session.open())
    script = Script(result())
    script.run(session.push(GRADIENT))

    header = script.header(0)
    assert script.asked == [PUSH]
    assert (header["incarnation"], header["epoch"], header["version"]) == ("two", 2, None)
    assert header["loss_scale"] == 4.0


# One at a time, one process


def test_a_second_push_at_the_same_time_is_refused():
    """Two threads with one worker would use one number for two gradients, and lose one."""
    session = open_session()
    flow = session.push(GRADIENT)
    next(flow)

    with pytest.raises(PushInFlight, match="makes one at a time"):
        Script().run(session.push(GRADIENT))
    with pytest.raises(StopIteration):
        flow.send(Answer(result()))

    assert session.sequence == 1


def test_a_forked_process_inherits_no_session(monkeypatch):
    """It can neither push nor pull with it nor close it; its parent still can."""
    session = open_session()
    monkeypatch.setattr(os, "getpid", lambda: -1)

    for flow in (session.push(GRADIENT), session.pull(), session.resolve()):
        with pytest.raises(UnknownSession, match="belongs to the process that opened it"):
            Script().run(flow)
    assert not session.is_open
    monkeypatch.undo()

    Script(result()).run(session.push(GRADIENT))


def test_a_session_that_was_closed_is_opened_by_the_next_call():
    """A worker may be used in one `with` block after the other."""
    session = open_session()
    closing = Script({})
    closing.run(session.close())
    assert not session.is_open
    script = Script(opened(epoch=2), result())

    script.run(session.push(GRADIENT))

    assert closing.asked == [CLOSE]
    assert closing.calls[0].query == {"epoch": 1, "incarnation": "one"}
    assert closing.calls[0].timeout_s == 1.0
    assert script.header(1)["epoch"] == 2


def test_a_session_counts_as_closed_even_if_nobody_was_told():
    """One try; the lease does the rest."""
    session = open_session()

    with pytest.raises(ConnectionFailed):
        Script(ConnectionFailed("x")).run(session.close())

    assert not session.is_open


def test_a_push_left_unresolved_in_a_closed_session_is_resolved_by_the_next():
    """`previous` says what became of it."""
    session = unresolved_session()
    Script({}).run(session.close())

    found = Script(opened(epoch=2, previous=previous(version=6))).run(session.resolve())

    assert found.version == 6


def test_an_opening_that_is_lost_is_made_again():
    """A ghost of the first attempt is fenced by the second."""
    session = new_session()
    script = Script(TimedOut("x"), opened(epoch=3))

    script.run(session.open())

    assert script.asked == [OPEN, OPEN]
    assert session.epoch == 3


def test_the_header_says_which_tensors_come():
    """A partial push goes through the session as any other."""
    layout = Layout.of({"w": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)})
    session = Session("digits", layout, "w0", {}, Patience(Timeout(), was_reached=True))
    script = Script(opened(), result())

    script.run(session.push({"b": np.ones(2, np.float32), "w": None}))

    assert header_of(script.calls[1])["tensors"] == ["b"]
