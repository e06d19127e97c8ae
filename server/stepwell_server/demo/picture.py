"""The picture of a training run: the loss of every push above, the held-out accuracy below."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE_PIXELS = (2000, 1300)
DPI = 200

# Told apart by most colour-blind eyes, and of about the same lightness; later workers reuse them.
WORKER_COLOURS = (
    "#3b7dd8",
    "#e8833a",
    "#2a9d6f",
    "#c2559d",
    "#8a6fd1",
    "#b8972b",
    "#3aa6b9",
    "#d1495b",
)
_ACCENT = WORKER_COLOURS[0]
INK, TEXT, QUIET, GRID = "#1b2430", "#3d4857", "#7a8594", "#e6e9ed"
# A batch that the network knows by heart has a loss of 0, which a logarithmic axis cannot show.
SMALLEST_LOSS = 1e-4
LARGEST_LOSS = 1e4
_NAMED_WORKERS = 5
_LONGEST_NAME = 12


class Push(TypedDict):
    """One push: the version it gave, when, from which worker, and the loss of its batch."""

    version: int
    seconds: float
    worker: str
    loss: float


class Evaluation(TypedDict):
    """The held-out accuracy, 0..1, of the parameters at a version."""

    version: int
    seconds: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class History:
    """What happened in a run, in any order."""

    pushes: Sequence[Push]
    evaluations: Sequence[Evaluation]


def draw(path: Path | str, history: History, title: str, summary: str) -> None:
    """Write the picture of a run as a PNG of `SIZE_PIXELS`; the folder must exist.

    Losses that are not finite are left out. Safe in any thread: no global state of matplotlib is
    read for drawing or changed.

    Args:
        summary: One line below the title: what ran, and what came of it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = SIZE_PIXELS
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    plain: dict[str, Any] = {"va": "center", "parse_math": False}
    figure.text(0.065, 0.938, title, fontsize=17, fontweight="bold", color=INK, **plain)
    figure.text(0.065, 0.889, summary, fontsize=10, color=QUIET, **plain)
    if history.pushes or history.evaluations:
        _draw_run(figure, history)
    else:
        figure.text(0.5, 0.45, "Nothing was pushed.", fontsize=13, color=QUIET, ha="center")
    figure.savefig(path, format="png", dpi=DPI)


def _draw_run(figure: "Figure", history: History) -> None:
    grid = figure.add_gridspec(
        2, 1, height_ratios=(1.75, 1), left=0.065, right=0.905, top=0.80, bottom=0.085, hspace=0.2
    )
    loss, accuracy = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    records = (*history.pushes, *history.evaluations)
    last_version = max(1, *(record["version"] for record in records))
    for axes in (loss, accuracy):
        _style(axes, last_version)
    loss.tick_params(labelbottom=False)
    _draw_loss(loss, history.pushes)
    _draw_accuracy(accuracy, history.evaluations)


def _style(axes: "Axes", last_version: int) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_xlim(0, last_version)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 3, 5, 10), integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c3c9d1")
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=TEXT, pad=6)


def heading(axes: "Axes", text: str) -> None:
    """Say above a panel what it shows."""
    axes.set_title(text, loc="left", fontsize=10.5, fontweight="bold", color=TEXT, pad=10)


def _draw_loss(axes: "Axes", pushes: Sequence[Push]) -> None:
    heading(axes, "Training loss")
    shown = sorted(
        (push for push in pushes if np.isfinite(push["loss"])), key=lambda push: push["version"]
    )
    versions = np.array([push["version"] for push in shown], dtype=np.float64)
    losses = np.clip([push["loss"] for push in shown], SMALLEST_LOSS, LARGEST_LOSS)
    workers = np.array([push["worker"] for push in shown])
    use_log_scale(axes, losses)
    if not shown:
        return

    colours = _colours(shown)
    opacity = min(0.7, 18 / np.sqrt(len(shown)))
    for worker, colour in colours.items():
        mine = workers == worker
        axes.scatter(versions[mine], losses[mine], s=7, color=colour, alpha=opacity, linewidths=0)
    smooth_versions, smooth_losses = smoothed(versions, losses)
    axes.plot(smooth_versions, smooth_losses, color="white", linewidth=4.5, alpha=0.8)
    axes.plot(smooth_versions, smooth_losses, color=INK, linewidth=1.9)
    last = smooth_losses[-1]
    label_end(axes, smooth_versions[-1], last, f"{last:.2g}" if last >= 1 else f"{last:#.2g}", INK)
    _draw_legend(axes, colours)


def use_log_scale(axes: "Axes", losses: NDArray[Any]) -> None:
    """Make the vertical axis logarithmic, around some losses; labelled whatever their range."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = (losses.min() / 1.4, losses.max() * 1.4) if len(losses) else (0.01, 4.0)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    # Powers of ten alone leave a run of less than two of them without labels.
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1,) if high > 100 * low else (1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_accuracy(axes: "Axes", evaluations: Sequence[Evaluation]) -> None:
    from matplotlib.ticker import PercentFormatter

    heading(axes, "Held-out accuracy")
    axes.set_xlabel("version", fontsize=9.5, color=QUIET, labelpad=6)
    shown = sorted(evaluations, key=lambda evaluation: evaluation["version"])
    versions = [evaluation["version"] for evaluation in shown]
    accuracies = [evaluation["accuracy"] for evaluation in shown]
    # A good run is told apart from a better one only near the top.
    is_good = bool(shown) and accuracies[-1] > 0.95
    axes.set_ylim(0.8 if is_good else 0.0, 1.005 if is_good else 1.03)
    axes.set_yticks((0.8, 0.85, 0.9, 0.95, 1.0) if is_good else (0.0, 0.25, 0.5, 0.75, 1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if shown:
        axes.plot(versions, accuracies, color=_ACCENT, linewidth=2.2, solid_joinstyle="round")
        label_end(axes, versions[-1], accuracies[-1], f"{accuracies[-1]:.1%}", _ACCENT)


def label_end(axes: "Axes", x: float, y: float, text: str, colour: str) -> None:
    """A dot where a curve ends, and its last value beside it, outside the panel."""
    axes.plot([x], [y], marker="o", markersize=6, color=colour, clip_on=False, zorder=5)
    axes.annotate(
        text,
        (x, y),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        fontsize=11,
        fontweight="bold",
        color=colour,
        annotation_clip=False,
    )


def _draw_legend(axes: "Axes", colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=shortened(worker))
        for worker, colour in colours.items()
    ]
    if len(handles) > _NAMED_WORKERS:
        rest = f"and {len(handles) - _NAMED_WORKERS} more"
        handles[_NAMED_WORKERS:] = [Line2D([], [], linestyle="", label=rest)]
    handles.append(Line2D([], [], color=INK, linewidth=1.9, label="smoothed"))
    legend = axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.043),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=TEXT,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.6,
        borderpad=0,
        borderaxespad=0,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def shortened(name: str) -> str:
    """Return the name of a worker as a picture has room for it."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "\u2026"


def _colours(pushes: Sequence[Push]) -> dict[str, str]:
    """One colour for each worker, in the order of their names: worker-2 before worker-10."""
    workers = sorted({push["worker"] for push in pushes}, key=lambda name: (len(name), name))
    return {
        worker: WORKER_COLOURS[index % len(WORKER_COLOURS)] for index, worker in enumerate(workers)
    }


def smoothed(
    versions: NDArray[np.float64], losses: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The geometric mean of the losses around each version, over a twentieth of the run.

    The geometric mean is where the eye sees the middle of the dots on a logarithmic axis.
    """
    at, which, count = np.unique(versions, return_inverse=True, return_counts=True)
    logs = np.bincount(which, weights=np.log(losses)) / count
    reach = max(1, len(at) // 40)
    # Twice, because the mean of means has no corners.
    return at, np.exp(_moving_mean(_moving_mean(logs, reach), reach))


def _moving_mean(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Mean over `reach` values to each side; fewer at the start, where a loss falls steeply."""
    index = np.arange(len(values))
    before = np.minimum(index // 2, reach)
    after = np.minimum(before, len(values) - 1 - index)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    means: NDArray[np.float64] = (sums[index + after + 1] - sums[index - before]) / (
        before + after + 1
    )
    return means
