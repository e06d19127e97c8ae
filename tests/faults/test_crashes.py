"""Real workers, real sockets, a server that is killed more than thirty times: nothing is lost.

Each run is a plan with a seed; `make soak` makes a thousand kills of the same kind.
"""

from __future__ import annotations

import pytest
from stepwell_server import failpoints

from tests.faults.plans import (
    CHECKPOINT_POINTS,
    PUSH_POINTS,
    RESTORE_POINTS,
    START_POINTS,
    SYNC_POINTS,
    Plan,
)

PLANS = {
    "always, by http": Plan(seed=11, kills=10, points=CHECKPOINT_POINTS),
    "always, synchronous": Plan(
        seed=12, kills=5, is_sync=True, points=(*SYNC_POINTS, *PUSH_POINTS[:2])
    ),
    "always, restores, shared memory": Plan(
        seed=13,
        kills=4,
        transport="auto",
        large_rows=30_000,
        restores=True,
        points=RESTORE_POINTS,
        power_losses=0.5,
    ),
    "everysec, by http": Plan(seed=14, kills=4, durability="everysec", points=PUSH_POINTS[2:]),
    "always, the power fails": Plan(seed=15, kills=4, power_losses=0.7, points=START_POINTS),
    "everysec, the power fails": Plan(
        seed=16, kills=3, durability="everysec", power_losses=1.0, points=()
    ),
}
LESS = "memory, held against always"
PLANS[LESS] = Plan(seed=17, kills=1, durability="memory", points=(), promised="always")
"""Under `memory` a crash goes back to the last checkpoint."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANS)
def test_no_kill_loses_or_repeats_what_was_acknowledged(name, runs):
    """Also not at a named place, nor with an answer lost; a tail that may go is told.

    And where a server promises less than it is held against, that is seen.
    """
    report = runs[name]

    print(report)
    expected = {"cut"} if name == LESS else set()
    assert {violation.rule for violation in report.violations} == expected, report
    assert report.kills.total() >= PLANS[name].kills
    assert set(PLANS[name].points) <= report.kills.keys(), "a named place was never reached"
    assert report.pushes > 2 * PLANS[name].kills


def test_the_plans_kill_at_every_named_place_that_there_is():
    """A place that is in the sources and in no plan would be tested by nobody."""
    assert {point for plan in PLANS.values() for point in plan.points} == failpoints.NAMES


def test_the_plans_kill_more_than_thirty_times():
    """What the project promises of its tests."""
    assert sum(plan.kills for name, plan in PLANS.items() if name != LESS) >= 30
    assert all(plan.reaches_all for plan in PLANS.values())
