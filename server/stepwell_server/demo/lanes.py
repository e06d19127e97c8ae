"""The picture of who came and went: the loss above, and below it a lane for each worker.

It is drawn from what the server wrote down, the model's history: steps, drops, joins and leaves.
What the demo did to the workers is marked on their lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import stepwell
from numpy.typing import NDArray
from stepwell.history import HistoryEvent, Series

from stepwell_server.demo import picture
from stepwell_server.demo.chaos import Deed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_PIXELS = (1600, 1100)
_DPI = 160
_POINTS = 4000  # the most that a server gives
_KINDS = ("join", "leave", "drop", "step")
_METRIC = "metrics.loss"

_STEP, _STAY, _BAD, _GOOD = "#3b7dd8", "#d9e5f7", "#d1495b", "#2a9d6f"
_MARKS = {"kill": ("X", _BAD), "stop": ("s", "#e8833a"), "resume": (">", _GOOD)}
_WORDS = {"kill": "SIGKILL", "stop": "SIGSTOP", "resume": "SIGCONT"}


@dataclass(frozen=True, slots=True)
class Stay:
    """One session: seconds from its join to its leave, and why it ended, such as "closed"."""

    worker: str
    began: float
    ended: float
    reason: str


@dataclass(frozen=True, slots=True)
class Lanes:
    """What is drawn; all times are seconds since the first event.

    Attributes:
        times: Of the losses.
        losses: What workers said; of a step of several the mean.
        stays: All sessions, in the order in which they began.
        steps: When each worker had a part in a step.
        drops: When a push of it was dropped.
        deeds: When, what and to whom.
    """

    times: NDArray[np.float64]
    losses: NDArray[np.float64]
    stays: Sequence[Stay]
    steps: Mapping[str, Sequence[float]]
    drops: Mapping[str, Sequence[float]]
    deeds: Sequence[tuple[float, str, str]]

    @property
    def workers(self) -> list[str]:
        """By name: w2 before w10."""
        return sorted({stay.worker for stay in self.stays}, key=lambda name: (len(name), name))


def seen(model: stepwell.Model, deeds: Iterable[Deed]) -> Lanes:
    """Return what the server has seen of a run, beside what the demo did."""
    history = model.history(kinds=_KINDS, points=_POINTS)
    return lanes_of(history.events, history.series.get(_METRIC), deeds)


def lanes_of(events: Sequence[HistoryEvent], loss: Series | None, deeds: Iterable[Deed]) -> Lanes:
    """Return what some events come to; they are in the order in which they happened."""
    start = events[0].time if events else 0.0
    steps: dict[str, list[float]] = {}
    drops: dict[str, list[float]] = {}
    for event in events:
        if event.kind == "step":
            for worker in event.fields["workers"]:
                steps.setdefault(worker, []).append(event.time - start)
        elif event.kind == "drop":
            drops.setdefault(event.fields["worker"], []).append(event.time - start)
    nothing: NDArray[np.float64] = np.zeros(0)
    return Lanes(
        times=nothing if loss is None else loss.time - start,
        losses=nothing if loss is None else loss.value,
        stays=stays_of(events),
        steps=steps,
        drops=drops,
        deeds=[(deed.time - start, deed.kind, deed.worker) for deed in deeds],
    )


def stays_of(events: Sequence[HistoryEvent]) -> list[Stay]:
    """Return the sessions in some events, in the order in which they began.

    One that is opened in the place of another ends that, which has no leave of its own.
    """
    began: dict[str, float] = {}
    stays: list[Stay] = []
    start = events[0].time if events else 0.0

    def end(worker: str, now: float, reason: str) -> None:
        if worker in began:
            stays.append(Stay(worker, began.pop(worker), now, reason))

    for event in events:
        now = event.time - start
        if event.kind == "join":
            end(event.fields["worker"], now, "replaced")
            began[event.fields["worker"]] = now
        elif event.kind == "leave":
            end(event.fields["worker"], now, event.fields["reason"])
    for worker in list(began):
        end(worker, events[-1].time - start, "open")
    return sorted(stays, key=lambda stay: stay.began)


def draw(path: Path | str, lanes: Lanes, summary: str) -> None:
    """Write the picture as a PNG of `SIZE_PIXELS`; the folder must exist."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = SIZE_PIXELS
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    plain: dict[str, Any] = {"va": "center", "parse_math": False}
    title = "Workers come and go, training goes on"
    figure.text(0.065, 0.942, title, fontsize=16, fontweight="bold", color=picture.INK, **plain)
    figure.text(0.065, 0.897, summary, fontsize=9.5, color=picture.QUIET, **plain)
    grid = figure.add_gridspec(
        2, 1, height_ratios=(1.2, 1), left=0.065, right=0.95, top=0.83, bottom=0.135, hspace=0.24
    )
    loss, rows = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    end = max((stay.ended for stay in lanes.stays), default=1.0) or 1.0
    for axes in (loss, rows):
        _style(axes, end)
        for time, kind, _ in lanes.deeds:
            if kind in _MARKS:
                axes.axvline(time, color=_MARKS[kind][1], linewidth=0.8, alpha=0.5, zorder=0)
    _draw_loss(loss, lanes)
    _draw_rows(rows, lanes)
    figure.savefig(path, format="png", dpi=_DPI)


def _style(axes: Axes, end: float) -> None:
    axes.set_xlim(0, end)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c3c9d1")
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=picture.TEXT, pad=6)


def _draw_loss(axes: Axes, lanes: Lanes) -> None:
    picture.heading(axes, "Training loss")
    losses = np.clip(lanes.losses, picture.SMALLEST_LOSS, picture.LARGEST_LOSS)
    picture.use_log_scale(axes, losses)
    axes.grid(axis="y", color=picture.GRID, linewidth=0.9)
    axes.tick_params(labelbottom=False)
    if len(losses):
        axes.scatter(lanes.times, losses, s=5, color=_STEP, alpha=0.35, linewidths=0)
        times, smooth = picture.smoothed(lanes.times, losses)
        axes.plot(times, smooth, color="white", linewidth=4, alpha=0.8)
        axes.plot(times, smooth, color=picture.INK, linewidth=1.7)


def _draw_rows(axes: Axes, lanes: Lanes) -> None:
    picture.heading(axes, "Workers")
    workers = lanes.workers
    row = {worker: place for place, worker in enumerate(workers)}
    axes.set_ylim(len(workers) - 0.4, -0.6)
    axes.set_yticks(range(len(workers)), [picture.shortened(worker) for worker in workers])
    axes.set_xlabel("seconds", fontsize=9.5, color=picture.QUIET, labelpad=6)
    for stay in lanes.stays:
        place = row[stay.worker]
        axes.barh(place, stay.ended - stay.began, left=stay.began, height=0.62, color=_STAY)
        if stay.reason not in ("closed", "open"):
            axes.plot([stay.ended] * 2, [place - 0.36, place + 0.36], color=_BAD, linewidth=2.4)
    for times, colour, reach in ((lanes.steps, _STEP, 0.22), (lanes.drops, _BAD, 0.31)):
        for worker, at in times.items():
            place = row[worker]
            axes.vlines(at, place - reach, place + reach, color=colour, linewidth=0.9)
    for time, kind, worker in lanes.deeds:
        if kind in _MARKS and worker in row:
            marker, colour = _MARKS[kind]
            axes.plot(
                [time],
                [row[worker]],
                marker=marker,
                color=colour,
                markersize=9,
                markeredgecolor="white",
                zorder=5,
            )
    _draw_legend(axes)


def _draw_legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(color=_STAY, label="session open"),
        Line2D([], [], color=_STEP, marker="|", linestyle="", label="part of a step"),
        Line2D([], [], color=_BAD, marker="|", linestyle="", label="push dropped"),
        *(
            Line2D([], [], marker=marker, linestyle="", color=colour, label=_WORDS[kind])
            for kind, (marker, colour) in _MARKS.items()
        ),
        Line2D([], [], color=_BAD, linewidth=2.4, label="ended by its lease, or replaced"),
    ]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.47, -0.2),
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        labelcolor=picture.TEXT,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.3,
    )
