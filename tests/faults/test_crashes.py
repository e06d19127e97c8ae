"""Real workers, real sockets, a server that is killed more than thirty times: nothing is lost.

Each run is a plan with a seed; `make soak` makes a thousand kills of the same kind.
"""

from __future__ import annotations

import pytest

from tests.faults.crashes import RESTORE_POINTS, Plan, run

PLANS = {
    "always, by http": Plan(seed=11, kills=10),
    "always, synchronous": Plan(seed=12, kills=6, is_sync=True),
    "always, restores, shared memory": Plan(
        seed=13,
        kills=5,
        transport="auto",
        large_rows=30_000,
        restores=True,
        points=RESTORE_POINTS,
    ),
    "everysec, by http": Plan(seed=14, kills=5, durability="everysec"),
    "always, the power fails": Plan(seed=15, kills=4, power_losses=0.7),
    "everysec, the power fails": Plan(
        seed=16, kills=3, durability="everysec", power_losses=1.0, points=()
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PLANS)
def test_no_kill_loses_or_repeats_what_was_acknowledged(name, tmp_path):
    """Also not at a named place, nor with an answer lost; a tail that may go is told."""
    plan = PLANS[name]

    report = run(plan, tmp_path)

    assert report.violations == [], report
    assert report.kills.total() == plan.kills
    assert report.pushes > 20 * plan.kills / 10
    print(report)


def test_the_plans_kill_more_than_thirty_times():
    """What the issue asks for."""
    assert sum(plan.kills for plan in PLANS.values()) >= 30


@pytest.mark.slow
def test_a_server_that_promises_less_is_seen_to_lose_history(tmp_path):
    """Under `memory` a crash goes back to the last checkpoint: the checker sees that, and the
    history is right for what `memory` promises."""
    plan = Plan(seed=17, kills=2, durability="memory", points=(), promised="always")

    report = run(plan, tmp_path)

    assert {violation.rule for violation in report.violations} == {"cut"}, report
