"""Tables for people, on a terminal of any width, or none."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not needed by a server that starts
    from rich.table import Table

WIDTH = 400
"""Of lines that go to a file or another program: nothing is folded for a screen that is not."""

GAP = 2


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    numbers: Collection[str],
    may_go: Sequence[str] = (),
) -> Table:
    """Return a table that has room in a width.

    Args:
        columns: Their names.
        rows: A cell a column.
        width: In characters.
        numbers: Columns that have their right sides in line.
        may_go: Columns that are left out where there is no room, the first one first: of a number
            that is folded, each line would be read as another number.
    """
    from rich.table import Table

    widths = {
        name: max(len(name), *(len(row[place]) for row in rows)) if rows else len(name)
        for place, name in enumerate(columns)
    }
    kept = list(columns)
    for name in may_go:
        if sum(widths[each] + GAP for each in kept) - GAP <= width:
            break
        kept.remove(name)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in kept:
        shown.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(cell for name, cell in zip(columns, row, strict=True) if name in kept))
    return shown


def width_of_stdout() -> int | None:
    """Return how wide a table on stdout may be; None lets rich ask the terminal."""
    return None if sys.stdout.isatty() else WIDTH
