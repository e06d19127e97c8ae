"""Counters come back as they were, and from strangers only if they can be."""

from __future__ import annotations

import pytest
from stepwell_core.loss_scale import LossScale
from stepwell_core.state import Counters

COUNTERS = Counters(7, 5, 6, LossScale(8.0, 3))


def test_counters_come_back_from_plain_values():
    """With and without a loss scale."""
    for counters in (COUNTERS, Counters(), Counters(2, 1, 1)):
        assert Counters.from_json(counters.to_json()) == counters


@pytest.mark.parametrize("name", ["version", "parameters_version", "iterations", "loss_scale"])
@pytest.mark.parametrize("value", ["abc", 1.5, -5, 10**400, True, [], {}, {"scale": 1}], ids=str)
def test_a_counter_is_a_number_that_can_be(name, value):
    """No text, no fraction, none below zero or without end."""
    with pytest.raises(ValueError, match="wanted"):
        Counters.from_json({**COUNTERS.to_json(), name: value})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 4},
        {"version": None},
        {"more": 1},
        {"loss_scale": {"scale": 1e300, "good_steps": 0}},
        {"loss_scale": {"scale": 0.1, "good_steps": 0}},
        {"loss_scale": {"scale": float("nan"), "good_steps": 0}},
        {"loss_scale": {"scale": 8.0, "good_steps": -1}},
    ],
    ids=str,
)
def test_counters_that_contradict_themselves_are_refused(change):
    """Parameters of the future, a loss scale that float32 does not have."""
    with pytest.raises(ValueError, match=r"."):
        Counters.from_json({**COUNTERS.to_json(), **change})
