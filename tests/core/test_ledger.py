"""Each push is admitted once, in order; a repetition gets the first answer; fenced stays fenced."""

from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stepwell_core import ledger as ledger_module
from stepwell_core.errors import (
    Fenced,
    InvalidInput,
    PayloadMismatch,
    SequenceGap,
    SessionExpired,
    TooManyWorkers,
    UnknownSession,
)
from stepwell_core.ledger import Ledger
from stepwell_core.session import OUTCOMES, STORED_RESULTS, Result, Session


def result(version: int) -> Result:
    """Return a result that can be told by its version."""
    return Result("applied", version, version)


def admit(ledger: Ledger, session: Session, sequence: int, version: int = 1) -> None:
    """Make the push that is due."""
    assert ledger.check(session.worker, session.epoch, sequence) is None
    ledger.record(session.worker, session.epoch, sequence, result(version))


def through_json(ledger: Ledger) -> Ledger:
    """Return the ledger that a checkpoint would give back."""
    return Ledger.from_json(json.loads(json.dumps(ledger.to_json())))


def test_a_new_session_is_open_and_has_admitted_nothing():
    """The first push of a session is number 0."""
    session, previous = Ledger().open("w0")

    assert session == Session("w0", 1)
    assert session.is_open
    assert session.last_sequence == -1
    assert session.last_result is None
    assert previous is None


def test_the_next_push_is_admitted():
    """`check` says None, `record` uses up the sequence number."""
    ledger = Ledger()
    session, _ = ledger.open("w0")

    admit(ledger, session, 0, version=7)

    assert session.last_sequence == 0
    assert session.last_result == result(7)


def test_check_alone_uses_up_nothing():
    """A push that was refused after the check may come again."""
    ledger = Ledger()
    session, _ = ledger.open("w0")

    answers = [ledger.check("w0", session.epoch, 0) for _ in range(3)]

    assert answers == [None, None, None]


def test_a_repetition_gets_the_first_answer_marked_as_duplicate():
    """The client learns what became of its push the first time."""
    ledger = Ledger()
    session, _ = ledger.open("w0")
    admit(ledger, session, 0, version=1)
    admit(ledger, session, 1, version=2)

    repeated = ledger.check("w0", session.epoch, 0)

    assert repeated == Result("applied", 1, 1, duplicate=True)
    assert session.last_sequence == 1


def test_a_gap_is_refused_and_says_what_is_due():
    """Pushes are admitted in order alone."""
    ledger = Ledger()
    session, _ = ledger.open("w0")
    admit(ledger, session, 0)

    with pytest.raises(SequenceGap) as error:
        ledger.check("w0", session.epoch, 2)

    assert error.value.details == {"expected": 1, "received": 2}


@pytest.mark.parametrize("sequence", [-1, -7])
@pytest.mark.parametrize("admitted", [0, 2])
def test_a_negative_sequence_is_refused(sequence, admitted):
    """A stranger's -1 is no repetition, even where nothing was admitted yet."""
    ledger = Ledger()
    session, _ = ledger.open("w0")
    for number in range(admitted):
        admit(ledger, session, number)

    with pytest.raises(InvalidInput, match="Received: -"):
        ledger.check("w0", session.epoch, sequence)


def test_the_last_64_results_are_stored_and_older_ones_are_settled_before():
    """An old repetition has no effect either, though its own answer is gone."""
    ledger = Ledger()
    session, _ = ledger.open("w0")
    for sequence in range(STORED_RESULTS + 1):
        admit(ledger, session, sequence, version=sequence + 1)

    oldest_stored = ledger.check("w0", session.epoch, 1)
    forgotten = ledger.check("w0", session.epoch, 0)

    assert STORED_RESULTS == len(session.results) == 64
    assert oldest_stored == Result("applied", 2, 2, duplicate=True)
    assert forgotten == Result("settled_before", 65, 65, duplicate=True)


def test_a_newer_session_fences_the_older_one():
    """Two processes with one name: the first can never push again."""
    ledger = Ledger()
    old, _ = ledger.open("w0")
    admit(ledger, old, 0)
    new, _ = ledger.open("w0")

    for sequence in (0, 1):
        with pytest.raises(Fenced) as error:
            ledger.check("w0", old.epoch, sequence)

    assert error.value.details == {"worker": "w0", "epoch": new.epoch}
    assert ledger.check("w0", new.epoch, 0) is None


@pytest.mark.parametrize(("worker", "epoch"), [("w0", 2), ("w1", 1)])
def test_a_session_that_never_was_is_unknown(worker, epoch):
    """Neither another worker's epoch nor a future one opens the door."""
    ledger = Ledger()
    ledger.open("w0")

    with pytest.raises(UnknownSession) as error:
        ledger.check(worker, epoch, 0)

    assert error.value.details == {"worker": worker, "epoch": epoch}


def test_a_closed_session_has_expired_for_new_pushes_and_for_repetitions():
    """`session_expired` tells the worker that nobody took its name: it may open a new one."""
    ledger = Ledger()
    session, _ = ledger.open("w0")
    admit(ledger, session, 0)
    ledger.close("w0", session.epoch)

    for sequence in (0, 1):
        with pytest.raises(SessionExpired):
            ledger.check("w0", session.epoch, sequence)


@pytest.mark.parametrize(("worker", "epoch"), [("w0", 1), ("w1", 2), ("w0", 9)])
def test_closing_what_is_not_the_newest_session_does_nothing(worker, epoch):
    """A late close of a fenced session does not close the one that fenced it."""
    ledger = Ledger()
    ledger.open("w0")
    ledger.open("w0")

    ledger.close(worker, epoch)

    assert ledger.open_workers == ["w0"]


def test_opening_tells_the_outcome_of_the_earlier_session():
    """A client with an unresolved push learns here whether it was admitted."""
    ledger = Ledger()
    first, _ = ledger.open("w0")
    admit(ledger, first, 0, version=5)

    _, previous = ledger.open("w0")

    assert previous is not None
    assert (previous.epoch, previous.last_sequence) == (1, 0)
    assert previous.last_result == result(5)


def test_opening_again_tells_the_same_outcome():
    """The answer to `open` may be lost; the call that repeats it must tell the same."""
    ledger = Ledger()
    first, _ = ledger.open("w0")
    admit(ledger, first, 0, version=5)
    for _ in range(3):
        ledger.open("w0")
        ledger = through_json(ledger)

    session, previous = ledger.open("w0")

    assert session.epoch == 5
    assert previous is not None
    assert (previous.epoch, previous.last_sequence) == (1, 0)
    assert previous.last_result == result(5)


def test_a_session_forgets_the_earlier_one_with_its_first_push():
    """What a session keeps does not grow with the number of sessions before it."""
    ledger = Ledger()
    for version in range(5):
        session, _ = ledger.open("w0")
        admit(ledger, session, 0, version=version)

    assert session.previous is None
    assert len(ledger.to_json()["sessions"]) == 1


def test_recording_for_a_fenced_session_changes_nothing():
    """A result that comes after a reopening belongs to nobody."""
    ledger = Ledger()
    old, _ = ledger.open("w0")
    new, _ = ledger.open("w0")

    ledger.record("w0", old.epoch, 0, result(1))
    ledger.record("w9", 1, 0, result(1))

    assert new.last_sequence == -1
    assert list(ledger.sessions) == ["w0"]


def test_epochs_never_repeat_not_even_when_a_worker_was_forgotten():
    """The counter is the model's, and it is saved."""
    ledger = Ledger()
    epochs = []
    for _ in range(3):
        for worker in ("w0", "w1"):
            session, _ = ledger.open(worker)
            epochs.append(session.epoch)
        ledger.close("w0", ledger.sessions["w0"].epoch)
        ledger = through_json(ledger)

    assert epochs == [1, 2, 3, 4, 5, 6]


def test_closed_sessions_are_bounded_and_the_oldest_are_forgotten(monkeypatch):
    """A worker that makes up a new name each time cannot fill the memory."""
    monkeypatch.setattr(ledger_module, "MAX_CLOSED_SESSIONS", 3)
    ledger = Ledger()
    for number in range(6):
        session, _ = ledger.open(f"w{number}")
        if number != 0:
            ledger.close(session.worker, session.epoch)

    assert list(ledger.sessions) == ["w0", "w3", "w4", "w5"]
    with pytest.raises(UnknownSession):
        ledger.check("w1", 2, 0)


def test_open_sessions_are_bounded_but_a_worker_may_always_reopen_its_own(monkeypatch):
    """A full house does not lock out those who are in it."""
    monkeypatch.setattr(ledger_module, "MAX_OPEN_SESSIONS", 2)
    ledger = Ledger()
    ledger.open("w0")
    ledger.open("w1")

    with pytest.raises(TooManyWorkers):
        ledger.open("w2")
    session, _ = ledger.open("w0")

    assert session.epoch == 3  # the refused one used up no epoch
    assert ledger.open_workers == ["w1", "w0"]


def test_most_open_counts_since_nobody_was_there():
    """A barrier that shrank to those who stayed remembers across a restart that it was full."""
    ledger = Ledger()
    sessions = [ledger.open(f"w{number}")[0] for number in range(3)]
    assert ledger.most_open == 3

    ledger.close("w0", sessions[0].epoch)
    ledger.close("w1", sessions[1].epoch)
    assert through_json(ledger).most_open == 3
    ledger.close("w2", sessions[2].epoch)
    assert ledger.most_open == 0


def test_results_keep_their_order_whatever_the_json_library_does():
    """Sorted keys put "10" before "9"; the oldest result is still the one that goes first."""
    ledger = Ledger()
    session, _ = ledger.open("w0")
    for sequence in range(STORED_RESULTS):
        admit(ledger, session, sequence)

    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json(), sort_keys=True)))
    admit(again, again.sessions["w0"], STORED_RESULTS)

    assert list(again.sessions["w0"].results) == list(range(1, STORED_RESULTS + 1))


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_result_survives_json(outcome):
    """What is stored is what was answered."""
    stored = Result(outcome, 9, 8, staleness=2, duplicate=True, loss_scale=1024.0)

    assert Result(**json.loads(json.dumps(stored.to_json()))) == stored


WORKERS = ("a", "b", "c")


class Model:
    """The same rules, as lists of everything that ever happened."""

    def __init__(self) -> None:
        self.epochs: dict[str, list[int]] = {worker: [] for worker in WORKERS}
        self.closed: set[int] = set()
        self.admitted: dict[int, list[Result]] = {}

    def expected(self, worker: str, epoch: int, sequence: int) -> type | Result | None:
        epochs = self.epochs[worker]
        if not epochs or epoch > epochs[-1]:
            return UnknownSession
        if epoch < epochs[-1]:
            return Fenced
        if epoch in self.closed:
            return SessionExpired
        results = self.admitted[epoch]
        if sequence > len(results):
            return SequenceGap
        if sequence == len(results):
            return None
        if sequence < len(results) - STORED_RESULTS:
            last = results[-1]
            return Result("settled_before", last.version, last.version, duplicate=True)
        return Result(
            "applied", results[sequence].version, results[sequence].version, duplicate=True
        )


def mark(sequence: int) -> str:
    """Return the fingerprint of a push."""
    return f"{sequence:016x}"


class LedgerMachine(RuleBasedStateMachine):
    """Opens, closes and pushes that are in order, repeated, reordered, delayed or made up."""

    @initialize()
    def begin(self) -> None:
        self.ledger, self.model = Ledger(), Model()
        self.version = 0

    def push(self, worker: str, epoch: int, sequence: int) -> None:
        expected = self.model.expected(worker, epoch, sequence)
        if isinstance(expected, type):
            with pytest.raises(expected) as caught:
                self.ledger.check(worker, epoch, sequence)
            assert caught.type is expected
            return
        answer = self.ledger.check(worker, epoch, sequence)
        assert answer == expected
        if answer is None:
            self.version += 1
            self.ledger.record(worker, epoch, sequence, result(self.version), mark(sequence))
            self.model.admitted[epoch].append(result(self.version))
        elif answer.outcome != "settled_before":
            assert self.ledger.check(worker, epoch, sequence, mark(sequence)) == answer
            with pytest.raises(PayloadMismatch):
                self.ledger.check(worker, epoch, sequence, "other bytes")

    @rule(worker=st.sampled_from(WORKERS))
    def open(self, worker: str) -> None:
        session, previous = self.ledger.open(worker)
        given = [epoch for epochs in self.model.epochs.values() for epoch in epochs]
        assert session.epoch not in given
        assert session.epoch > max(given, default=0)
        told = [epoch for epoch in self.model.epochs[worker] if self.model.admitted[epoch]]
        assert (previous is None) == (not self.model.epochs[worker])
        if told and previous is not None:
            assert previous.epoch == told[-1]
            assert previous.last_sequence == len(self.model.admitted[told[-1]]) - 1
            assert previous.last_result == self.model.admitted[told[-1]][-1]
        self.model.epochs[worker].append(session.epoch)
        self.model.admitted[session.epoch] = []

    @rule(worker=st.sampled_from(WORKERS), back=st.integers(0, 2))
    def close(self, worker: str, back: int) -> None:
        epochs = self.model.epochs[worker]
        if len(epochs) > back:
            self.ledger.close(worker, epochs[-1 - back])
            if back == 0:
                self.model.closed.add(epochs[-1])

    @rule(worker=st.sampled_from(WORKERS), count=st.integers(1, 40))
    def push_in_order(self, worker: str, count: int) -> None:
        for _ in range(count if self.model.epochs[worker] else 0):
            epoch = self.model.epochs[worker][-1]
            self.push(worker, epoch, len(self.model.admitted[epoch]))

    @rule(worker=st.sampled_from(WORKERS), back=st.integers(0, 3), offset=st.integers(-80, 3))
    def push_out_of_order(self, worker: str, back: int, offset: int) -> None:
        """Repeat, delay or skip: any session of the worker's, any sequence near its last."""
        epochs = self.model.epochs[worker]
        if len(epochs) > back:
            epoch = epochs[-1 - back]
            self.push(worker, epoch, max(len(self.model.admitted[epoch]) + offset, 0))

    @rule(worker=st.sampled_from(WORKERS), epoch=st.integers(-1, 40), sequence=st.integers(0, 9))
    def push_made_up(self, worker: str, epoch: int, sequence: int) -> None:
        self.push(worker, epoch, sequence)

    @rule()
    def restart(self) -> None:
        before = self.ledger.to_json()
        self.ledger = through_json(self.ledger)
        assert self.ledger.to_json() == before

    @invariant()
    def the_open_sessions_are_those_of_the_model(self) -> None:
        current = {e[-1] for e in self.model.epochs.values() if e} - self.model.closed
        assert {s.epoch for s in self.ledger.sessions.values() if s.is_open} == current


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=80, stateful_step_count=40)


def plain():
    """Return the plain values of a ledger with a session, its results and an earlier one."""
    ledger = Ledger()
    for _ in range(2):
        session, _ = ledger.open("a")
        if session.epoch == 1:
            admit(ledger, session, 0)
    session, _ = ledger.open("b")
    for sequence in range(3):
        admit(ledger, session, sequence)
    ledger.record("b", session.epoch, 3, result(9), "f" * 16)
    return json.loads(json.dumps(ledger.to_json()))


def places(value, path=()):
    """Yield the place of every value."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def test_every_value_of_a_saved_ledger_is_of_its_type_or_refused():
    """A manifest is a stranger's: what would fail at each push later, or never, is refused now."""
    strange = [None, "x", -5, 1.5, 1 << 70, 10**400, [], {}, [1], "../../x\n", True]
    taken = {}
    for path in places(plain()):
        for value in strange:
            hostile = plain()
            place = hostile
            for key in path[:-1]:
                place = place[key]
            if json.dumps(place[path[-1]]) == json.dumps(value):
                continue
            place[path[-1]] = value
            try:
                Ledger.from_json(hostile)
            except ValueError:
                continue
            taken.setdefault(path[-1], set()).add(str(value)[:9])

    names = {"worker", "clock_start", "loss_scale", "fingerprints", "previous", "3"}
    assert taken.keys() <= names | {"is_open", "duplicate", "sessions"}
    assert taken["worker"] == {"x"}
    assert taken["clock_start"] == {"-5"}
    assert taken["loss_scale"] == {"1.5"}
    assert taken["fingerprints"] == {"{}"}
    assert taken["3"] == {"x"}, "a fingerprint"


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["sessions"].append(value["sessions"][0]),
        lambda value: value["sessions"][1].update(results={}),
        lambda value: value["sessions"][1].update(last_sequence=99),
        lambda value: value["sessions"][1]["results"].pop("1"),
        lambda value: value["sessions"][1]["results"].update({"00": value}),
        lambda value: value["sessions"][1].update(epoch=1000),
        lambda value: value["sessions"][0]["previous"].update(previous=value["sessions"][1]),
        lambda value: value.update(other=1),
        lambda value: value.pop("last_epoch"),
        lambda value: value.update(sessions=[{}] * 20_001),
    ],
)
def test_a_saved_ledger_that_contradicts_itself_is_refused(change):
    """Two sessions of one worker, results that are not its last, an epoch of the future."""
    hostile = plain()
    change(hostile)

    with pytest.raises(ValueError, match=r"."):
        Ledger.from_json(hostile)


def test_a_cut_stays_as_it_is_while_the_ledger_goes_on():
    """Whatever changes: pushes, sessions that are opened and closed, clocks that begin anew."""
    ledger = Ledger.from_json(plain())
    before = json.dumps(ledger.to_json())
    cut = ledger.cut()

    session = ledger.sessions["b"]
    admit(ledger, session, 4)
    admit(ledger, ledger.sessions["b"], 5)
    ledger.restart_clocks()
    ledger.close("b", session.epoch)
    ledger.open("a")
    ledger.open("c")

    assert json.dumps(cut.to_json()) == before
    assert json.dumps(ledger.to_json()) != before
    assert ledger.sessions["b"].last_sequence == 5


def test_a_cut_shares_what_does_not_change():
    """It costs the model's lane a pointer a session, not a copy of 64 results."""
    ledger = Ledger.from_json(plain())

    first, second = ledger.cut(), ledger.cut()
    admit(ledger, ledger.sessions["b"], 4)

    assert all(first.sessions[name] is second.sessions[name] for name in "ab")
    assert ledger.sessions["a"] is first.sessions["a"]
    assert ledger.sessions["b"] is not first.sessions["b"]


def test_a_session_that_was_closed_keeps_its_last_result_alone():
    """The one that the next session is told; nobody can ask for the others."""
    ledger = Ledger()
    session, _ = ledger.open("w0")
    for sequence in range(5):
        admit(ledger, session, sequence, version=sequence)

    ledger.close("w0", session.epoch)
    _, previous = ledger.open("w0")

    assert previous.last_result == result(4)
    assert list(previous.results) == [4]
