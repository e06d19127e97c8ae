"""What each consistency mode does to a fast, a slow and a dead worker, as a picture.

    python -m benchmarks.modes docs/images/consistency.png

A simulation in virtual time around the policies that the server runs: three workers compute
gradients, of which one is slow, and one dies in the middle and is there until its lease ends.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell_core.consistency import (
    Async,
    Bounded,
    Buffered,
    Consistency,
    Drop,
    Gather,
    Policy,
    Quorum,
    Step,
    Sync,
)

from benchmarks.picture import GRID, INK, QUIET, TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMPUTES_S = {"dies": 1.3, "fast": 1.0, "slow": 2.8}
"""Seconds that each worker takes for a gradient."""

DIES_S, LEASE_S, END_S = 9.0, 5.0, 24.0

SHOWN: tuple[tuple[Consistency, str], ...] = (
    (Async(), "Async(): every push is a step; nobody waits for anybody"),
    (
        Sync(3),
        "Sync(3): a step of one gradient each; all wait for the slowest, and for the dead one"
        " until its lease ends",
    ),
    (Quorum(3, 2), "Quorum(3, 2): a step of the first two; what comes later is dropped"),
    (Buffered(3), "Buffered(3): a step of any three pushes; nobody waits, stale ones count less"),
    (
        Bounded(3),
        "Bounded(3): every push is a step; nobody is more than three ahead of the slowest,"
        " dead or alive",
    ),
)

DPI, SIZE_INCHES = 150, (12.0, 10.8)
COLOURS = {"fast": "#3b7dd8", "slow": "#e8833a", "dies": "#8a6fd1"}
WAITS, BAD = "#e4e8ed", "#d1495b"
LANES = ("fast", "slow", "dies", "steps")


@dataclass(frozen=True)
class Push:
    """A push, as a policy sees it."""

    worker: str
    version: int | None


@dataclass
class Run:
    """What happened, in seconds.

    Attributes:
        computed: From when to when each worker computed.
        waited: From when to when a push of each waited.
        dropped: When a push of each was dropped.
        steps: When a step was made, and whose pushes are in it.
    """

    computed: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    waited: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    dropped: dict[str, list[float]] = field(default_factory=dict)
    steps: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)


class Simulation:
    """Three workers of one mode."""

    def __init__(self, mode: Consistency) -> None:
        self.run = Run()
        self._policy: Policy[Push] = mode.policy()
        self._version = 0
        self._events: list[tuple[float, str, str]] = []  # when, what, who
        self._since: dict[str, tuple[float, int]] = {}  # computing, at which version
        self._waits: dict[str, float] = {}
        self._gathered: list[str] = []

    def to_its_end(self) -> Run:
        """Return what happened."""
        for worker in COMPUTES_S:
            self._policy.join(worker)
        for worker in COMPUTES_S:
            self._begin(worker, 0.0)
        heapq.heappush(self._events, (DIES_S, "death", "dies"))
        heapq.heappush(self._events, (DIES_S + LEASE_S, "lease", "dies"))
        while self._events and self._events[0][0] <= END_S:
            now, what, worker = heapq.heappop(self._events)
            getattr(self, f"_{what}")(worker, now)
            while (due := self._policy.due()) is not None:
                self._step(due.pushes, now)
        for worker, (since, _) in self._since.items():
            self._note(self.run.computed, worker, since, END_S)
        for worker, since in self._waits.items():
            self._note(self.run.waited, worker, since, END_S)
        return self.run

    def _begin(self, worker: str, now: float) -> None:
        self._since[worker] = now, self._version
        heapq.heappush(self._events, (now + COMPUTES_S[worker], "push", worker))

    def _push(self, worker: str, now: float) -> None:
        if worker not in self._since:
            return  # it died
        since, version = self._since.pop(worker)
        self._note(self.run.computed, worker, since, now)
        offered = self._policy.offer(push := Push(worker, version), self._version)
        match offered:
            case Step():
                self._step(offered.pushes, now)
            case Gather():
                self._gather(push, now, completes=offered.completes)
            case Drop():
                self.run.dropped.setdefault(worker, []).append(now)
                self._settle(worker, offered.outcome, now)
            case _:
                self._waits[worker] = now

    def _death(self, worker: str, now: float) -> None:
        if worker in self._since:
            self._note(self.run.computed, worker, self._since.pop(worker)[0], now)
        if worker in self._waits:
            self._note(self.run.waited, worker, self._waits.pop(worker), now)

    def _lease(self, worker: str, now: float) -> None:
        self._policy.leave(worker)

    def _gather(self, push: Push, now: float, *, completes: bool) -> None:
        self._gathered.append(push.worker)
        if completes:
            self._version += 1
            self.run.steps.append((now, tuple(self._gathered)))
            self._gathered = []
        self._settle(push.worker, "applied" if completes else "buffered", now)

    def _step(self, pushes: Sequence[Push], now: float) -> None:
        self._version += 1
        self.run.steps.append((now, tuple(push.worker for push in pushes)))
        for push in pushes:
            self._settle(push.worker, "applied", now)

    def _settle(self, worker: str, outcome: str, now: float) -> None:
        self._policy.settled(worker, outcome)
        if worker in self._waits:
            self._note(self.run.waited, worker, self._waits.pop(worker), now)
        if worker != "dies" or now < DIES_S:
            self._begin(worker, now)

    @staticmethod
    def _note(
        spans: dict[str, list[tuple[float, float]]], worker: str, since: float, now: float
    ) -> None:
        spans.setdefault(worker, []).append((since, now))


def draw(path: Path) -> None:
    """Write the picture as a PNG; its folder must exist."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    title = "A fast, a slow and a dead worker"
    figure.text(0.05, 0.972, title, fontsize=16, fontweight="bold", color=INK, va="center")
    grid = figure.add_gridspec(
        len(SHOWN), 1, left=0.075, right=0.975, top=0.92, bottom=0.085, hspace=0.5
    )
    for place, (mode, what) in enumerate(SHOWN):
        axes = figure.add_subplot(grid[place])
        _style(axes, what, is_last=place == len(SHOWN) - 1)
        _draw_run(axes, Simulation(mode).to_its_end())
    _draw_legend(figure)
    figure.savefig(path, format="png", dpi=DPI)


def _style(axes: Axes, what: str, *, is_last: bool) -> None:
    axes.set_title(what, loc="left", fontsize=10, fontweight="bold", color=TEXT, pad=6)
    axes.set_xlim(0, END_S)
    axes.set_ylim(len(LANES) - 0.5, -0.5)
    axes.set_yticks(range(len(LANES)), LANES)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=TEXT, labelbottom=is_last)
    if is_last:
        axes.set_xlabel("seconds", fontsize=9, color=QUIET)


def _draw_run(axes: Axes, run: Run) -> None:
    for worker in COMPUTES_S:
        lane = LANES.index(worker)
        for since, until in run.computed.get(worker, ()):
            axes.barh(
                lane,
                until - since,
                left=since,
                height=0.66,
                color=COLOURS[worker],
                edgecolor="white",
                linewidth=1.2,
            )
        for since, until in run.waited.get(worker, ()):
            axes.barh(lane, until - since, left=since, height=0.66, color=WAITS)
        dropped = run.dropped.get(worker, ())
        axes.plot(dropped, [lane] * len(dropped), "x", color=BAD, markersize=7, mew=2.2, zorder=5)
    lane = LANES.index("dies")
    axes.barh(lane, LEASE_S, left=DIES_S, height=0.12, color=BAD, alpha=0.5)
    axes.plot([DIES_S], [lane], "X", color=INK, markersize=9, markeredgecolor="white", zorder=6)
    axes.plot([DIES_S + LEASE_S], [lane], "|", color=BAD, markersize=13, mew=2.5, zorder=6)
    steps = LANES.index("steps")
    before = 0.0
    for when, workers in run.steps:
        when = before = max(when, before + 0.1)  # two at once are seen as two
        colour = COLOURS[workers[0]] if len(workers) == 1 else INK
        axes.vlines(when, steps - 0.36, steps + 0.36, color=colour, linewidth=2.2)


def _draw_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def line(marker: str, colour: str, label: str) -> Line2D:
        return Line2D([], [], marker=marker, linestyle="", color=colour, label=label, mew=2)

    handles = [
        *(Patch(color=colour, label=f"{worker} computes") for worker, colour in COLOURS.items()),
        Patch(color=WAITS, label="its push waits"),
        line("x", BAD, "push dropped"),
        line("X", INK, "killed"),
        line("|", BAD, "its lease ends"),
        line("|", INK, "a step of several"),
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=TEXT,
        handlelength=1.2,
        columnspacing=1.4,
        bbox_to_anchor=(0.5, 0.005),
    )


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
