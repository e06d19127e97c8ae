"""The ring: the last entries, by number."""

from __future__ import annotations

from stepwell_server.history.ring import Ring

from tests.server.history.entries import entry


def test_a_ring_has_the_last_entries_and_no_others():
    """Older ones, and those that are to come, are not found."""
    ring = Ring(first=5, size=3)
    empty = (ring.oldest, ring.next_number)

    for number in range(5, 10):
        ring.add(entry(number))

    assert empty == (5, 5)
    assert (ring.oldest, ring.next_number, ring.last_forgotten) == (7, 10, 6)
    found = [ring.find(number) for number in range(5, 11)]
    assert [None if e is None else e.number for e in found] == [None, None, 7, 8, 9, None]


def test_a_ring_that_is_not_full_begins_with_its_first():
    """Nobody is told that he missed what never was."""
    ring = Ring(first=100, size=10, last_before=3)
    ring.add(entry(100))

    assert (ring.oldest, ring.last_forgotten) == (100, 3)
