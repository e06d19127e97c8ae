"""How a figure is taken: several contenders in turn, round after round, and the median of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One figure against its bar.

    Attributes:
        what: What was measured.
        measured: The figure.
        bar: What it must reach.
        is_met: Whether it does; None if there is no bar or no figure.
        detail: The times behind it.
    """

    what: str
    measured: str
    bar: str
    is_met: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """What a suite found.

    Attributes:
        rows: Each figure against its bar.
        seconds: All medians by contender, for pictures and for other ratios.
    """

    rows: list[Row]
    seconds: dict[str, float] = field(default_factory=dict)


def medians(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contender.

    All run once to warm up, then in turn, so that a machine that slows down slows all of them.
    """
    return medians_told({name: _timed(run) for name, run in contenders.items()}, rounds)


def medians_told(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median of what each contender says of its own turns; see `medians`."""
    for turn in turns.values():
        turn()
    told: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            told[name].append(turn())
    return {name: statistics.median(values) for name, values in told.items()}


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    def turn() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return turn


def at_most(what: str, ratio: float, bar: float, detail: str = "") -> Row:
    """Return the row of a ratio that must not be larger than its bar."""
    return Row(what, f"{ratio:.2f} x", f"<= {bar:g} x", ratio <= bar, detail)


def at_least(what: str, ratio: float, bar: float, detail: str = "") -> Row:
    """Return the row of a ratio that must not be smaller than its bar."""
    return Row(what, f"{ratio:.3g} x", f">= {bar:g} x", ratio >= bar, detail)


def within(what: str, value: float, bar: float, unit: str, detail: str = "") -> Row:
    """Return the row of a figure that must not be larger than its bar."""
    return Row(what, f"{_figure(value)} {unit}", f"<= {_figure(bar)} {unit}", value <= bar, detail)


def shown(what: str, ratio: float, detail: str = "") -> Row:
    """Return the row of a ratio that has no bar."""
    return Row(what, f"{ratio:.2f} x", "-", None, detail)


def not_measured(what: str, bar: str, why: str) -> Row:
    """Return the row of a figure that could not be taken here."""
    return Row(what, "not measured", bar, None, why)


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def ms(seconds: float) -> str:
    """Return a time in words."""
    return f"{seconds * 1e3:.1f} ms"


def us(seconds: float) -> str:
    """Return a short time in words."""
    return f"{seconds * 1e6:.0f} us"
