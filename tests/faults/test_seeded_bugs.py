"""Bugs that are put into a real server on purpose: its workers' history shows each of them."""

from __future__ import annotations

import pytest

from tests.faults.crashes import Plan, run
from tests.faults.server_program import BUGS

SHOWN_BY = {
    "double_apply": {"surplus", "sum"},
    "repetition_applied": {"duplicate"},
    "lost_apply": {"lost", "sum"},
    "torn_pull": {"torn"},
    "stale_read": {"stale"},
}
"""At least one of these rules is broken."""


def test_each_bug_is_expected_to_be_shown():
    """A new one has a line here; the last one needs a power loss."""
    assert BUGS.keys() == {*SHOWN_BY, "answer_before_fsync"}


@pytest.mark.parametrize("bug", SHOWN_BY)
def test_a_seeded_bug_is_caught(bug, tmp_path):
    """In a second of ordinary work, without any kill."""
    report = run(Plan(seed=21, kills=0, bug=bug), tmp_path)

    assert SHOWN_BY[bug] & {violation.rule for violation in report.violations}, report


@pytest.mark.slow
def test_an_answer_before_the_fsync_is_caught_when_the_power_fails(tmp_path):
    """What was acknowledged is not there; with the sync in its place it is (test_crashes)."""
    plan = Plan(seed=7, kills=3, power_losses=1.0, points=(), bug="answer_before_fsync")

    report = run(plan, tmp_path)

    assert {"stale", "lost", "cut"} & {violation.rule for violation in report.violations}, report


def test_the_same_work_without_a_bug_has_no_violations(tmp_path):
    """So what was caught was the bug."""
    report = run(Plan(seed=21, kills=0), tmp_path)

    assert report.violations == [], report
