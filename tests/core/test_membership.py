"""Leases and patience: who is taken for gone, when, and who is not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stepwell_core.membership import HUNG, SILENT, Expiry, Membership

LEASE_S, PATIENCE_S = 4.0, 10.0
NAMES = ("w0", "w1", "w2")


@pytest.fixture
def membership():
    """Return one in which w0 has had session 1 since the time 100."""
    membership = Membership(LEASE_S, PATIENCE_S)
    membership.joined("w0", 1, 100.0)
    return membership


def reasons(membership, now, waiting=()):
    """Return why sessions are to be ended, by worker."""
    return {(e.worker, e.reason) for e in membership.expired(now, waiting)}


def test_a_silent_worker_is_there_until_its_lease_ends(membership):
    """Not a moment shorter, and the reason is told."""
    assert membership.next_end() == 104.0
    assert membership.expired(103.999) == []
    assert membership.expired(104.0) == [Expiry("w0", 1, SILENT)]


def test_nobody_ends_where_nobody_is():
    """There is nothing to wait for then."""
    empty = Membership(LEASE_S, PATIENCE_S)

    assert empty.next_end() is None
    assert empty.expired(1e9) == []


def test_a_sign_of_life_renews_the_lease(membership):
    """For a whole one, from then on."""
    membership.seen("w0", 1, 103.0)

    assert membership.next_end() == 107.0
    assert membership.expired(106.9) == []


def test_a_sign_that_comes_late_takes_nothing_back(membership):
    """Two requests may be noted in another order than they came."""
    membership.seen("w0", 1, 103.0)
    membership.seen("w0", 1, 101.0)

    assert membership.next_end() == 107.0


def test_a_worker_that_only_lives_is_hung_when_patience_ends(membership):
    """Its heartbeat has a thread of its own."""
    for now in range(101, 111):
        membership.seen("w0", 1, float(now))

    assert reasons(membership, 109.9) == set()
    assert reasons(membership, 110.0) == {("w0", HUNG)}


def test_a_push_is_what_patience_waits_for(membership):
    """From its last byte on."""
    membership.sends("w0", 1, 101.0)
    membership.sent("w0", 1, 108.0, whole=True)
    membership.seen("w0", 1, 117.0)

    assert reasons(membership, 117.9) == set()
    assert reasons(membership, 118.0) == {("w0", HUNG)}


def test_the_bytes_of_a_gradient_hold_the_lease_and_patience_does_not_count_meanwhile(membership):
    """However long it takes: the server's receiver has a deadline of its own."""
    membership.sends("w0", 1, 103.0)
    for now in range(104, 160, 3):
        assert membership.expired(float(now)) == []
        membership.seen("w0", 1, float(now))

    assert membership.next_end() == 162.0


def test_a_gradient_that_does_not_come_on_holds_the_lease_no_longer_than_silence(membership):
    """A process that was stopped in the middle of it is as gone as any other."""
    membership.sends("w0", 1, 103.0)

    assert membership.expired(106.9) == []
    assert membership.expired(107.0) == [Expiry("w0", 1, SILENT)]


def test_a_connection_that_breaks_leaves_the_lease_where_it_was(membership):
    """Who broke off gave its last sign when it began."""
    membership.sends("w0", 1, 103.0)
    membership.sent("w0", 1, 103.5, whole=False)

    assert membership.members["w0"].pushed == 100.0
    assert membership.expired(107.0) == [Expiry("w0", 1, SILENT)]


def test_nobody_is_impatient_until_the_last_of_several_gradients_is_there(membership):
    """A retry may come while the first attempt is still open."""
    membership.sends("w0", 1, 101.0)
    membership.sends("w0", 1, 102.0)
    membership.sent("w0", 1, 103.0, whole=False)
    membership.seen("w0", 1, 119.0)
    still = membership.expired(120.0)
    membership.sent("w0", 1, 120.0, whole=True)

    assert still == []
    assert membership.next_end() == 124.0
    assert membership.members["w0"].pushed == 120.0


def test_a_lease_that_becomes_shorter_is_so_for_who_was_told(membership):
    """The others beat at the old pace still."""
    membership.joined("w1", 2, 100.0)
    membership.begin_anew({"w0": 1, "w1": 2}, 1.0, PATIENCE_S, 200.0)
    before = membership.next_end()
    told = membership.told("w1", 2, 201.0)

    assert (before, told) == (204.0, 1.0)
    assert reasons(membership, 203.9) == {("w1", SILENT)}
    assert reasons(membership, 204.0) == {("w0", SILENT), ("w1", SILENT)}


def test_a_lease_that_becomes_longer_is_so_at_once(membership):
    """Who beats too often does no harm."""
    membership.begin_anew({"w0": 1}, 8.0, 80.0, 200.0)

    assert membership.next_end() == 208.0


def test_a_push_that_waits_is_no_silence_of_its_worker_as_long_as_it_lives(membership):
    """Others may keep it waiting for ever; its own lease goes on."""
    membership.seen("w0", 1, 109.0)

    assert reasons(membership, 112.0, waiting={"w0"}) == set()
    assert reasons(membership, 113.0, waiting={"w0"}) == {("w0", SILENT)}
    assert membership.next_end(waiting={"w0"}) == 113.0


def test_patience_is_counted_from_when_a_worker_was_last_seen_to_wait(membership):
    """It has to ask again, or to send its gradient, in the moment after that."""
    membership.waits({"w0", "w9"}, 150.0)
    membership.seen("w0", 1, 159.0)

    assert reasons(membership, 159.9) == set()
    assert reasons(membership, 160.0) == {("w0", HUNG)}


def test_when_a_push_waits_no_more_patience_begins_anew(membership):
    """The next push is awaited from then on, not from when the last one came."""
    membership.settled("w0", 1, 150.0)
    membership.seen("w0", 1, 159.0)

    assert reasons(membership, 159.9) == set()
    assert reasons(membership, 160.0) == {("w0", HUNG)}


def test_a_session_is_ended_once_if_there_are_both_reasons(membership):
    """Silence says more than that nothing was pushed."""
    assert membership.expired(1000.0) == [Expiry("w0", 1, SILENT)]


def test_seconds_in_which_nobody_listened_do_not_count(membership):
    """A stopped server could not hear anyone."""
    membership.forgive(50.0, 153.0)

    assert membership.next_end() == 154.0
    assert membership.members["w0"].pushed == 150.0


def test_who_was_heard_after_those_seconds_gets_no_longer_lease_for_them(membership):
    """It would hold the others up for as long as the server was stopped."""
    membership.seen("w0", 1, 149.0)
    membership.forgive(50.0, 150.0)

    assert membership.next_end() == 154.0


def test_a_new_session_takes_the_place_of_the_old_one_whose_signs_count_no_more(membership):
    """A fenced process may still send heartbeats."""
    membership.joined("w0", 2, 103.0)
    membership.seen("w0", 1, 106.0)
    membership.sends("w0", 1, 106.0)
    membership.settled("w0", 1, 106.0)
    membership.sent("w0", 1, 106.0, whole=True)
    membership.left("w0", 1)

    assert membership.expired(107.0) == [Expiry("w0", 2, SILENT)]


def test_an_older_session_that_is_noted_late_changes_nothing(membership):
    """Two openings may be noted in another order than they were made."""
    membership.joined("w0", 2, 103.0)
    membership.joined("w0", 1, 104.0)

    assert membership.members["w0"].epoch == 2
    assert membership.next_end() == 107.0


def test_who_left_is_not_there(membership):
    """And a sign of life brings nobody back."""
    membership.left("w0", 1)
    membership.seen("w0", 1, 101.0)

    assert membership.members == {}


def test_signs_of_somebody_who_was_never_there_are_no_error(membership):
    """A question may come from a session that was closed in between."""
    for note in (membership.seen, membership.sends, membership.settled):
        note("w9", 3, 100.0)
    membership.sent("w9", 3, 100.0, whole=True)
    membership.left("w9", 3)

    assert list(membership.members) == ["w0"]


@dataclass
class Known:
    """What a plain account says of a worker."""

    epoch: int
    sign: float
    push: float
    sending: int = 0


class MembershipMachine(RuleBasedStateMachine):
    """Whatever happens, in any order: the same answers as a plain account of it."""

    def __init__(self) -> None:
        super().__init__()
        self.membership = Membership(LEASE_S, PATIENCE_S)
        self.known: dict[str, Known] = {}
        self.now, self.epoch = 0.0, 0

    @rule(seconds=st.floats(0.0, 6.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(worker=st.sampled_from(NAMES))
    def open(self, worker: str) -> None:
        self.epoch += 1
        self.membership.joined(worker, self.epoch, self.now)
        self.known[worker] = Known(self.epoch, self.now, self.now)

    @rule(worker=st.sampled_from(NAMES), old=st.integers(0, 1))
    def close(self, worker: str, old: int) -> None:
        if worker in self.known:
            self.membership.left(worker, self.known[worker].epoch - old)
            if not old:
                del self.known[worker]

    @rule(worker=st.sampled_from(NAMES), old=st.integers(0, 1), what=st.sampled_from("lbcds"))
    def sign(self, worker: str, old: int, what: str) -> None:
        known = self.known.get(worker, Known(0, 0.0, 0.0))
        who = worker, known.epoch - old
        counted = dataclasses.replace(known) if old else known
        if what == "l":
            self.membership.seen(*who, self.now)
            counted.sign = self.now
        elif what == "b":
            self.membership.sends(*who, self.now)
            counted.sign, counted.sending = self.now, counted.sending + 1
        elif what == "s":
            self.membership.settled(*who, self.now)
            counted.push = self.now
        elif counted.sending:
            self.membership.sent(*who, self.now, whole=what == "d")
            counted.sending -= 1
            if what == "d":
                counted.sign = counted.push = self.now

    @rule()
    def end_those_who_are_gone(self) -> None:
        for expiry in self.membership.expired(self.now):
            self.membership.left(expiry.worker, expiry.epoch)
            self.known.pop(expiry.worker, None)
        end = self.membership.next_end()
        assert end is None or end > self.now

    @invariant()
    def the_same_sessions_end_as_by_the_account(self) -> None:
        for waiting in (set(), {"w0"}, set(NAMES)):
            expected = set()
            for worker, known in self.known.items():
                is_hung = worker not in waiting and self.now >= known.push + PATIENCE_S
                if self.now >= known.sign + LEASE_S:
                    expected.add((worker, SILENT))
                elif is_hung and not known.sending:
                    expected.add((worker, HUNG))
            assert reasons(self.membership, self.now, waiting) == expected
            end = self.membership.next_end(waiting)
            assert (end is not None and end <= self.now) == bool(expected)


TestMembership = MembershipMachine.TestCase


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e4))
def test_forgiving_moves_every_end_by_as_much(begin, lag_s):
    """Whenever that was."""
    membership = Membership(LEASE_S, PATIENCE_S)
    membership.joined("w0", 1, begin)
    membership.forgive(lag_s, begin + lag_s)

    assert membership.next_end() == pytest.approx(begin + LEASE_S + lag_s)
