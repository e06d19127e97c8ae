"""What was found, for people and for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Result, Row

HEADINGS = ("what", "measured", "bar", "met", "times")


def show(name: str, result: Result) -> None:
    """Print a suite's rows as a table."""
    table = Table(title=name, title_justify="left", title_style="bold")
    for heading in HEADINGS:
        table.add_column(heading)
    for row in result.rows:
        table.add_row(*_cells(row))
    Console(width=170).print(table)


def markdown(rows: Iterable[Row]) -> str:
    """Return rows as a table of Markdown, for the docs."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def to_json(results: Mapping[str, Result]) -> str:
    """Return all rows and medians, with date and machine, as JSON."""
    return json.dumps(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "suites": {name: asdict(result) for name, result in results.items()},
        },
        indent=1,
    )


def machine() -> str:
    """Return what the figures were measured on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}"
    )


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[row.is_met]
    return row.what, row.measured, row.bar, met, row.detail
