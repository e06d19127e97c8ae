"""Real workers, real sockets, a server that is killed more than thirty times: nothing is lost.

Each run is a plan with a seed; `make soak` makes a thousand kills of the same kind.
"""

from __future__ import annotations

import pytest

from tests.faults.plans import RESTORE_POINTS, Plan

PLANS = {
    "always, by http": Plan(seed=11, kills=10),
    "always, synchronous": Plan(seed=12, kills=5, is_sync=True),
    "always, restores, shared memory": Plan(
        seed=13,
        kills=4,
        transport="auto",
        large_rows=30_000,
        restores=True,
        points=RESTORE_POINTS,
    ),
    "everysec, by http": Plan(seed=14, kills=4, durability="everysec"),
    "always, the power fails": Plan(seed=15, kills=4, power_losses=0.7),
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
    assert report.kills.total() == PLANS[name].kills
    assert report.pushes > 2 * PLANS[name].kills


def test_the_plans_kill_more_than_thirty_times():
    """What the project promises of its tests."""
    assert sum(plan.kills for name, plan in PLANS.items() if name != LESS) >= 30
