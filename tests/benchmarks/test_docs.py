"""The tables of the docs come from results."""

from __future__ import annotations

import json

import pytest

from benchmarks import docs, measure, report
from benchmarks.__main__ import SUITES
from benchmarks.measure import Result

RESULTS = json.loads(report.to_json({"update": Result([measure.at_most("a", 1.0, 2.0, "b")])}))


def test_a_table_takes_the_place_of_the_one_before() -> None:
    """What stands around it stays, and a second run gives the same page."""
    page = "before\n<!-- suite: update -->\nold\n<!-- end -->\nafter\n"

    filled = docs.filled(page, RESULTS)

    assert filled.startswith("before\n<!-- suite: update -->\nMeasured on ")
    assert filled.endswith("| a | 1.00 x | <= 2 x | yes | b |\n<!-- end -->\nafter\n")
    assert docs.filled(filled, RESULTS) == filled


def test_a_page_without_a_place_is_refused() -> None:
    """Nobody should think that the figures are there."""
    with pytest.raises(ValueError, match="one place for 'update'"):
        docs.filled("before\n", RESULTS)


@pytest.mark.parametrize("suite", SUITES)
def test_the_docs_have_a_place_for_every_suite(suite: str) -> None:
    """A new suite is not forgotten there."""
    page = docs.PAGE.read_text()

    assert page.count(docs.BEGIN.format(suite)) == 1
