"""Modes from JSON that may come from a stranger."""

from __future__ import annotations

import pytest
from stepwell_core.consistency import from_json
from stepwell_core.errors import InvalidArgument


@pytest.mark.parametrize(
    "value",
    [
        None, 3, True, [], {}, "", "Async", "sync", "bulk", {"mode": None}, {"mode": "bulk"},
        {"mode": ["sync"]}, {"mode": {"mode": "async"}}, {"workers": 2}, {"mode": "sync"},
        {"mode": "async", "workers": 2}, {"mode": "sync", "workers": 2, 3: 4},
        {"mode": "sync", "workers": {"workers": 2}}, ["sync", 2], b"async", "a" * 10_000,
    ],
)  # fmt: skip
def test_what_is_not_a_mode_is_refused_in_a_short_sentence(value):
    """Nothing but the modes and exactly their arguments; the error does not repeat a long value."""
    with pytest.raises(InvalidArgument, match="Received: ") as error:
        from_json(value)

    assert len(error.value.message) < 500
