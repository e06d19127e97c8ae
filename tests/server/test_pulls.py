"""Who gives way when every version is held: by readers whose slowness the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from stepwell_core.errors import VersionsExhausted
from stepwell_server.pulls import Pulls

INFINITE = float("inf")


class FakeReader:
    """A reader that notes when it has to give way, and then does."""

    def __init__(self, name: str, rate: float, is_slow: bool, aborted: list[str]) -> None:
        self.name, self.rate, self.is_slow, self.aborted = name, rate, is_slow, aborted
        self.end: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Begin at once."""

    def abort(self) -> None:
        self.aborted.append(self.name)
        self.end()


def given_way(readers: list[tuple[str, float, bool]], spares: int) -> list[str]:
    """Return who gives way, in order, until no more than `spares` of some readers are left."""
    aborted: list[str] = []

    async def scenario() -> None:
        pulls, held = Pulls(), []

        def hold() -> Awaitable[None]:
            if len(held) > spares:
                raise VersionsExhausted("all are held")
            return asyncio.sleep(0)

        for name, rate, is_slow in readers:
            held.append(name)
            reader = FakeReader(name, rate, is_slow, aborted)
            reader.end = pulls.begin(reader, lambda name=name: held.remove(name))
        await pulls.hold(hold)

    asyncio.run(scenario())
    return aborted


def test_the_slowest_at_a_wire_gives_way_before_the_oldest_in_memory():
    """And no more of them than have to."""
    readers = [
        ("memory-1", INFINITE, True),
        ("memory-2", INFINITE, True),
        ("wire-fast", 1e9, False),
        ("wire-slow", 2.0, True),
        ("wire-slowest", 1.0, True),
    ]

    assert given_way(readers, 3) == ["wire-slowest", "wire-slow"]
    assert given_way(readers, 2) == ["wire-slowest", "wire-slow", "memory-1"]


def test_nobody_who_is_not_slow_gives_way():
    """The new pull is refused then."""
    with pytest.raises(VersionsExhausted):
        given_way([("memory", INFINITE, False), ("wire", 1.0, False)], 0)
