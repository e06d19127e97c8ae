"""The last entries of a history, by number, in memory of a fixed size."""

from __future__ import annotations

from stepwell_server.history.events import Entry

RING_ENTRIES = 4096
"""Some 3 MiB of steps, and more than a second of them at full speed."""


class Ring:
    """The last entries, whose numbers follow each other without a gap.

    One thread at a time may `add`; any thread may read, without a lock: an entry that is
    overwritten meanwhile is not found any more.

    Args:
        first: Number of the first entry that will be added.
        size: How many entries are kept.
        last_before: The largest number that is known to have been given before `first`.
    """

    def __init__(self, first: int, size: int = RING_ENTRIES, last_before: int = 0) -> None:
        self._last_before = last_before
        self._entries: list[Entry | None] = [None] * size
        self._first = first
        self.next_number = first

    @property
    def oldest(self) -> int:
        """The number of the oldest entry that is kept; `next_number` if there is none."""
        return max(self._first, self.next_number - len(self._entries))

    @property
    def last_forgotten(self) -> int:
        """The largest number of an entry that was, and is not kept any more; 0 if none was."""
        oldest = self.oldest
        return self._last_before if oldest == self._first else oldest - 1

    def add(self, entry: Entry) -> None:
        """Keep an entry, whose number is `next_number`; the oldest one gives way."""
        self._entries[entry.number % len(self._entries)] = entry
        self.next_number = entry.number + 1

    def find(self, number: int) -> Entry | None:
        """Return an entry, or None if it is not kept any more, or not there yet."""
        entry = self._entries[number % len(self._entries)]
        return entry if entry is not None and entry.number == number else None
