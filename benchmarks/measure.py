"""How a figure is taken: several contenders in turn, round after round, and the median of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure against its bar.

    Attributes:
        what: What was measured.
        measured: The figure.
        bar: What it must reach.
        is_met: Whether it does.
        detail: The times behind it.
    """

    what: str
    measured: str
    bar: str
    is_met: bool
    detail: str = ""


def medians(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender.

    All run once to warm up, then in turn, so that a machine that slows down slows all of them.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def at_most(what: str, ratio: float, bar: float, detail: str = "") -> Row:
    """Return the row of a ratio that must not be larger than its bar."""
    return Row(what, f"{ratio:.2f} x", f"<= {bar:g} x", ratio <= bar, detail)


def at_least(what: str, ratio: float, bar: float, detail: str = "") -> Row:
    """Return the row of a ratio that must not be smaller than its bar."""
    return Row(what, f"{ratio:.1f} x", f">= {bar:g} x", ratio >= bar, detail)


def within(what: str, value: float, bar: float, unit: str, detail: str = "") -> Row:
    """Return the row of a time that must not be longer than its bar."""
    return Row(what, f"{value:.3g} {unit}", f"<= {bar:g} {unit}", value <= bar, detail)


def shown(what: str, ratio: float, detail: str = "") -> Row:
    """Return the row of a ratio that has no bar."""
    return Row(what, f"{ratio:.2f} x", "-", True, detail)
