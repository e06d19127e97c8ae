"""Waiting for what tells nobody when it comes, such as a container or another's program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def soon(
    ask: Callable[[], T],
    why_not: Callable[[], str],
    *,
    deadline_s: float = 60.0,
    every_s: float = 0.05,
) -> T:
    """Ask again and again until the answer is one, and return it.

    Args:
        ask: Its answer counts if it is true.
        why_not: What the test fails with when the time is over.
        deadline_s: For how long.
        every_s: How often; more seldom where asking costs much.
    """
    deadline = time.monotonic() + deadline_s
    while not (found := ask()):
        assert time.monotonic() < deadline, why_not()
        time.sleep(every_s)
    return found
