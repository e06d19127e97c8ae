"""The child's side of a measurement: a program says that it is ready, then takes turns.

Each line of stdin is a JSON object that names a turn and its arguments; each turn answers with one
JSON object on a line of stdout. When stdin ends, so does the program. Whatever libraries print
beside that does no harm: the parent skips what is not such a line.

Standard library only, and Python 3.9 or newer: the peers run this in environments of their own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Turn = Callable[..., Mapping[str, Any]]


def take(turns: Mapping[str, Turn], **facts: Any) -> None:
    """Say that the program is ready, then take the turns that are asked for until stdin ends.

    Args:
        turns: By name; each is called with the arguments of the request.
        facts: What the parent learns with the first line: a version, a port.
    """
    _say({"turns": list(turns), **facts})
    for line in sys.stdin:
        request = json.loads(line)
        _say(turns[request.pop("turn")](**request))


def timed(
    run: Callable[[], object], calls: int = 1, before: Callable[[], object] | None = None
) -> Turn:
    """Return a turn that says the median seconds of so many calls of `run`.

    Args:
        run: What is timed.
        calls: How often.
        before: Called at the beginning of each turn, and not timed.
    """

    def turn() -> Mapping[str, Any]:
        if before is not None:
            before()
        return {"seconds": median_s(run, calls)}

    return turn


def median_s(run: Callable[[], object], calls: int) -> float:
    """Return the median seconds of a number of calls, one after the other."""
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _say(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)
