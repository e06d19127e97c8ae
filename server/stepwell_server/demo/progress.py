"""What the demo shows while it runs: a bar, and a row a worker."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from stepwell_server.demo.worker import Record

_RATE_WINDOW_S = 2.0
_REFRESHES_PER_S = 8


class View:
    """The state that is drawn.

    Args:
        workers: Names, in the order of the rows.
        total: How many pushes there will be in all, or steps of the model.
        unit: "pushes" or "steps".
    """

    def __init__(self, workers: list[str], total: int, unit: str = "pushes") -> None:
        self._recent: dict[str, deque[Record]] = {name: deque() for name in workers}
        self._count = dict.fromkeys(workers, 0)
        self._accuracy: float | None = None
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
        )
        self._task = self._progress.add_task("training", total=total)
        self._counts_steps = unit == "steps"
        self.version = 0

    def add(self, record: Record) -> None:
        """Take note of a push."""
        recent = self._recent.setdefault(record.worker, deque())
        recent.append(record)
        self._count[record.worker] = self._count.get(record.worker, 0) + 1
        self.version = max(self.version, record.version)
        done = self.version if self._counts_steps else sum(self._count.values())
        self._progress.update(self._task, completed=done)

    def evaluated(self, accuracy: float) -> None:
        """Take note of the held-out accuracy."""
        self._accuracy = accuracy

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for name in ("worker", "pushes", "pushes/s", "loss", "version"):
            table.add_column(name, justify="left" if name == "worker" else "right", min_width=9)
        for worker, recent in self._recent.items():
            self._forget_old(recent)
            if not recent:
                table.add_row(worker, str(self._count.get(worker, 0)), "-", "-", "-")
                continue
            rate = len(recent) / _RATE_WINDOW_S
            last = recent[-1]
            table.add_row(
                worker,
                str(self._count[worker]),
                f"{rate:.0f}",
                f"{last.loss:.4f}",
                str(last.version),
            )
        accuracy = "-" if self._accuracy is None else f"{self._accuracy:.1%}"
        return Group(self._progress, "", table, "", f"held-out accuracy  {accuracy}")

    def _forget_old(self, recent: deque[Record]) -> None:
        while len(recent) > 1 and recent[0].ended < time.monotonic() - _RATE_WINDOW_S:
            recent.popleft()


@contextlib.contextmanager
def shown(view: View, console: Console) -> Iterator[None]:
    """Draw the view while the block runs; only on a terminal."""
    if not console.is_terminal:
        yield
        return
    with Live(view, console=console, refresh_per_second=_REFRESHES_PER_S, transient=True):
        yield
