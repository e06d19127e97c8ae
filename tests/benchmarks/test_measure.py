"""Figures against bars."""

from __future__ import annotations

import json

import pytest

from benchmarks import measure, report
from benchmarks.measure import Result, Row


@pytest.mark.parametrize(
    ("row", "is_met"),
    [
        (measure.at_most("a", 1.25, 1.25), True),
        (measure.at_most("a", 1.26, 1.25), False),
        (measure.at_least("a", 1.7, 1.7), True),
        (measure.at_least("a", 1.6, 1.7), False),
        (measure.within("a", 25.0, 25, "s"), True),
        (measure.within("a", 25.1, 25, "s"), False),
        (measure.shown("a", 2.0), None),
        (measure.not_measured("a", ">= 2 x", "not installed"), None),
    ],
)
def test_a_bar_is_met_or_not_or_was_not_put_to_the_test(row: Row, is_met: bool | None) -> None:
    """What was not measured is never met."""
    assert row.is_met is is_met


def test_contenders_take_turns() -> None:
    """Each once to warm up, then round by round; the warm-up does not count."""
    order: list[str] = []
    times = {"a": iter([9.0, 1.0, 2.0, 3.0]), "b": iter([9.0, 5.0, 4.0, 6.0])}

    def turn(name: str) -> float:
        order.append(name)
        return next(times[name])

    found = measure.medians_told({name: lambda n=name: turn(n) for name in times}, 3)

    assert order == ["a", "b"] * 4
    assert found == {"a": 2.0, "b": 5.0}


def test_json_has_all_that_was_found() -> None:
    """Rows, medians, and the machine; for pictures and for other ratios."""
    result = Result([measure.shown("a", 2.0, "2 against 1")], {"a": 2.0})

    found = json.loads(report.to_json({"suite": result}))

    assert found["suites"]["suite"]["seconds"] == {"a": 2.0}
    assert found["suites"]["suite"]["rows"][0]["what"] == "a"
    assert "cores" in found["machine"]
