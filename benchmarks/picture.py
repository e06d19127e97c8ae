"""The picture of the benchmarks: the time to push 102 MB, make the step, and pull, as bars.

    python -m benchmarks.picture RESULTS.json PICTURE.png

draws it again from the results of a run, without another one. It shows the suite `peers` if that
ran, else what `wire.large` has. On white, so that it can be read on a dark page as well.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import contenders

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUITES = ("peers", "wire.large")
"""That have such times, the better one first."""

CONTENDERS = (
    contenders.IN_PLACE,
    contenders.MEMORY,
    contenders.RAY,
    contenders.HTTP,
    contenders.TORCH,
    contenders.MXNET,
    contenders.TENSORFLOW,
    contenders.NAIVE,
)
OURS = (contenders.IN_PLACE, contenders.MEMORY, contenders.HTTP)

WIDTH_PIXELS, BAR_PIXELS, FRAME_PIXELS, DPI = 2000, 100, 350, 200
INK, TEXT, QUIET, GRID = "#1b2430", "#3d4857", "#7a8594", "#e6e9ed"
ACCENT, PALE_ACCENT, GREY, PALE_GREY = "#3b7dd8", "#9dbeec", "#8d97a5", "#c6ccd4"
TITLE = "Push a 102 MB gradient, make the Adam step, pull the parameters"
LABELLED = 0.12  # parts shorter than this share of the longest bar have no label


@dataclass(frozen=True)
class Bar:
    """One contender: milliseconds of push and step, and of the pull; None if only of both."""

    name: str
    total_ms: float
    push_ms: float | None


def bars(document: str) -> list[Bar]:
    """Return the bars that results, given as JSON, have times for, shortest first."""
    suites = json.loads(document)["suites"]
    for suite in SUITES:
        if suite in suites:
            seconds = suites[suite]["seconds"]
            found = [_bar(seconds, name) for name in CONTENDERS]
            return sorted((bar for bar in found if bar), key=lambda bar: bar.total_ms)
    return []


def draw(document: str, path: Path) -> None:
    """Write the picture of results, given as JSON, as a PNG; its folder must exist."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = json.loads(document)
    drawn = bars(document)
    height = FRAME_PIXELS + BAR_PIXELS * len(drawn)
    figure = Figure(figsize=(WIDTH_PIXELS / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    summary = (
        f"Medians, server and worker on one machine: {results['machine']}; {results['date'][:10]}"
    )
    for text, above, style in (
        (TITLE, 90, {"fontsize": 15, "fontweight": "bold", "color": INK}),
        (summary, 160, {"fontsize": 9.5, "color": QUIET}),
    ):
        figure.text(0.03, 1 - above / height, text, va="center", parse_math=False, **style)
    axes = figure.add_axes((0.26, 120 / height, 0.65, 1 - FRAME_PIXELS / height))
    _style(axes, drawn)
    for place, bar in enumerate(drawn):
        _draw_bar(axes, place, bar, max(each.total_ms for each in drawn))
    figure.savefig(path, format="png", dpi=DPI)


def _bar(seconds: dict[str, float], name: str) -> Bar | None:
    total, push = contenders.push_pull_s(seconds, name), seconds.get(f"{name}/push")
    if total is None:
        return None
    return Bar(name, total * 1e3, None if push is None else push * 1e3)


def _style(axes: Axes, drawn: list[Bar]) -> None:
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.set_xlim(0, max(bar.total_ms for bar in drawn))
    axes.set_yticks(range(len(drawn)), [bar.name for bar in drawn])
    axes.grid(axis="x", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=TEXT, pad=6)
    axes.set_xlabel("milliseconds", fontsize=9.5, color=QUIET, labelpad=6)
    for label in axes.get_yticklabels():
        if label.get_text() in OURS:
            label.set(fontweight="bold", color=INK)


def _draw_bar(axes: Axes, place: int, bar: Bar, longest_ms: float) -> None:
    dark, pale = (ACCENT, PALE_ACCENT) if bar.name in OURS else (GREY, PALE_GREY)
    push_ms = bar.total_ms if bar.push_ms is None else bar.push_ms
    parts = (("push + step", 0.0, push_ms, dark), ("pull", push_ms, bar.total_ms - push_ms, pale))
    if bar.push_ms is None:
        parts = (("push + step + pull", 0.0, bar.total_ms, dark),)
    for text, start, length, colour in parts:
        axes.barh(place, length, left=start, height=0.62, color=colour, linewidth=0)
        if length > longest_ms * LABELLED:
            axes.text(
                start + length / 2,
                place,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if colour in (ACCENT, GREY) else TEXT,
            )
    axes.annotate(
        f"{_figure(bar.total_ms)} ms",
        (bar.total_ms, place),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
        fontweight="bold",
        color=ACCENT if bar.name in OURS else TEXT,
        annotation_clip=False,
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    draw(Path(sys.argv[1]).read_text(), Path(sys.argv[2]))
