"""What a stranger's plain values may be, and that nothing else passes."""

from __future__ import annotations

import math

import pytest
from stepwell_core import strict

STRANGE = [None, True, 1.5, -1, 1 << 70, "x\n", "", [], {}, b"x", math.nan, math.inf, "x" * 65]


@pytest.mark.parametrize(
    ("read", "accepted"),
    [
        (strict.integer, []),
        (strict.boolean, [True]),
        (strict.number, [1.5, -1, math.nan, math.inf]),
        (strict.positive, [1.5]),
        (strict.text, []),
        (strict.identifier, []),
        (strict.mapping, [{}]),
        (lambda value: strict.sequence(value, 3), [[]]),
    ],
)
def test_only_what_is_wanted_passes(read, accepted):
    """All else is a ValueError, whatever it is."""
    passed = []
    for value in STRANGE:
        try:
            passed.append(read(value))
        except ValueError:
            continue

    assert list(map(repr, map(type, passed))) == list(
        map(repr, (type(read(value)) for value in accepted))
    )
    assert len(passed) == len(accepted)


def test_limits_are_part_of_it():
    """The first and the last pass, those beside them do not."""
    assert [strict.integer(number, 3, 5) for number in (3, 5)] == [3, 5]
    assert strict.sequence((1, 2), 2) == [1, 2]
    assert strict.mapping({"a": 1, "b": 2}, "a", "b") == {"a": 1, "b": 2}
    for refused in (
        lambda: strict.integer(2, 3, 5),
        lambda: strict.integer(6, 3, 5),
        lambda: strict.sequence((1, 2, 3), 2),
        lambda: strict.mapping({"a": 1}, "a", "b"),
        lambda: strict.mapping({"a": 1, "b": 2, "c": 3}, "a", "b"),
    ):
        with pytest.raises(ValueError, match="wanted"):
            refused()
