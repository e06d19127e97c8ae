"""Bugs that are put into a real server on purpose: its workers' history shows each of them."""

from __future__ import annotations

import pytest

from tests.faults.plans import Plan
from tests.faults.server_program import BUGS

SHOWN_BY = {
    "double_apply": {"surplus", "sum"},
    "repetition_applied": {"duplicate"},
    "lost_apply": {"lost", "sum"},
    "torn_pull": {"torn"},
    "stale_read": {"stale"},
    "answer_before_fsync": {"stale", "lost", "cut"},
    "": set(),
}
"""Of each bug, the rules of which at least one is broken. Without a bug none is."""

PLANS = {bug: Plan(seed=21, kills=0, workers=2, bug=bug) for bug in SHOWN_BY}
PLANS["answer_before_fsync"] = Plan(
    seed=7, kills=3, power_losses=1.0, points=(), bug="answer_before_fsync"
)
"""The others are seen in a moment of ordinary work, without any kill."""


LONG = {"answer_before_fsync", "stale_read", "torn_pull"}
"""Left to `make test-full`."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.full) if name in LONG else name for name in SHOWN_BY],
)
def test_a_seeded_bug_is_caught(name, runs):
    """By the workers' history alone; and what is caught is the bug."""
    report = runs[name]

    broken = {violation.rule for violation in report.violations}
    assert broken & SHOWN_BY[name] or broken == SHOWN_BY[name] == set(), report


def test_each_bug_has_a_test():
    """A new one has a line above."""
    assert {*BUGS, ""} == SHOWN_BY.keys()
