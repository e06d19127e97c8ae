"""Many schedules of workers that come, go, hang and repeat, under every mode.

What is promised: no deadlock, no contribution lost or counted twice, nobody runs too far ahead, the
dead hold nobody up for longer than their lease, and what was gathered stays. See `simulation.py`.
"""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepwell_core.consistency import Async, Bounded, Buffered, Quorum, Sync

from tests.core.models import image
from tests.core.simulation import (
    CALM,
    FAULTY,
    LEASE_S,
    PATIENCE_S,
    QUICK_WORK_S,
    Plan,
    World,
)

TIMES = {"lease_s": LEASE_S, "patience_s": PATIENCE_S}
MODES = [
    Async(**TIMES),
    Async(max_staleness=1, on_stale="reject", **TIMES),
    Async(max_staleness=1, on_stale="scale", **TIMES),
    Sync("all", **TIMES),
    Sync(2, **TIMES),
    Sync(3, reduction="arrival", **TIMES),
    Sync(2, on_leave="wait", **TIMES),
    Quorum(workers=4, quorum=2, **TIMES),
    Buffered(3, **TIMES),
    Bounded(1, **TIMES),
    Bounded(3, **TIMES),
]
KINDS = ["fast", "slow", "dies", "hangs", "sleeps", "returns", "late", "leaves", "twin"]
BRIEF = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
by_mode = pytest.mark.parametrize("mode", MODES, ids=str)

others = st.lists(st.sampled_from(KINDS), max_size=3)
lives = st.sampled_from(["fast", "slow"])
seeds = st.integers(0, 2**32 - 1)


@by_mode
@BRIEF
@given(lives, others, st.sampled_from([CALM, FAULTY]), seeds)
def test_whatever_workers_and_the_network_do_training_goes_on_and_counts_each_push_once(
    mode, one, rest, network, seed
):
    """As long as one worker lives; each was told the truth about each of its gradients."""
    World(Plan(mode, (one, *rest), network, seed=seed)).run()


@by_mode
@BRIEF
@given(
    lives,
    others,
    st.sampled_from([CALM, FAULTY]),
    st.lists(
        st.tuples(st.floats(0.5, 8.0), st.none() | st.sampled_from(MODES)), min_size=1, max_size=4
    ),
    seeds,
)
def test_a_mode_may_be_chosen_and_a_server_restarted_at_any_time(
    mode, one, rest, network, switches, seed
):
    """Pushes that wait are decided on anew or come again, and what was gathered makes a step."""
    World(Plan(mode, (one, *rest), network, switches, seed)).run()


@pytest.mark.full
@pytest.mark.timeout(900)
@by_mode
@settings(BRIEF, max_examples=300)
@given(lives, others, st.sampled_from([CALM, FAULTY]), seeds)
def test_thousands_of_schedules_more_hold_it_too(mode, one, rest, network, seed):
    """3,300 of them, where there is time."""
    World(Plan(mode, (one, *rest), network, seed=seed)).run()


CYCLE_S = QUICK_WORK_S + 3 * (2 * CALM.delay_s + CALM.transfer_s)
"""The longest that a quick worker takes for one push, from parameters to answer."""


@pytest.mark.parametrize(
    "mode",
    [
        Sync("all", **TIMES),
        Sync(3, **TIMES),
        Sync(3, reduction="arrival", **TIMES),
        Quorum(workers=3, quorum=3, **TIMES),
    ],
    ids=str,
)
@pytest.mark.parametrize(("kind", "gone_s"), [("dies", LEASE_S), ("hangs", PATIENCE_S)])
@settings(BRIEF, max_examples=30)
@given(seed=seeds)
def test_a_worker_that_is_gone_delays_one_step_by_its_lease_at_most(mode, kind, gone_s, seed):
    """Whenever it dies; by its patience, if only its trainer hangs. No other step is delayed."""
    server = World(Plan(mode, ("fast", kind, "fast"), seed=seed, horizon_s=12.0)).run()

    pauses = [later - earlier for earlier, later in itertools.pairwise(server.advances)]
    delayed = [pause_s for pause_s in pauses if pause_s > CYCLE_S]

    assert len(delayed) <= 1
    assert all(pause_s <= gone_s + CYCLE_S for pause_s in delayed)
    assert server.time.now - server.advances[-1] <= CYCLE_S


def test_the_same_plan_is_the_same_run():
    """A failure can be looked at again."""
    switches = [(3.0, Buffered(3, **TIMES)), (5.0, None), (7.0, Sync(2, **TIMES))]
    plan = Plan(MODES[4], ("slow", "returns", "sleeps", "twin"), FAULTY, switches, seed=7)

    first, second = World(plan).run(), World(plan).run()

    assert first.advances == second.advances
    assert image(first.engine) == image(second.engine)
    assert first.account.told == second.account.told


def test_everything_that_can_happen_happens():
    """The schedules are no empty promise: each outcome, many sessions, many versions."""
    told: Counter[str] = Counter()
    sessions = 0
    for seed in range(20):
        switches = [(4.0, MODES[seed % len(MODES)]), (8.0, None)]
        kinds = ("fast", "slow", KINDS[2 + seed % 7], KINDS[2 + seed // 7])
        server = World(Plan(MODES[seed * 7 % 11], kinds, FAULTY, switches, seed)).run()
        told += server.account.told
        sessions += server.engine.ledger.last_epoch

    assert {"applied", "buffered", "dropped_late", "dropped_stale"} <= told.keys()
    assert told["applied"] > 100, told
    assert sessions > 80
