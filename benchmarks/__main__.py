"""Run suites and print their tables: `python -m benchmarks [suite ...]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row

SUITES = ("update", "startup")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    unknown = set(arguments.suites) - set(SUITES)
    if unknown:
        parser.error(
            f"there is no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}"
        )
    rows = {
        name: importlib.import_module(f"benchmarks.{name}").run()
        for name in arguments.suites or SUITES
    }
    for name, found in rows.items():
        show(name, found)
    if arguments.json:
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "suites": {name: [asdict(row) for row in found] for name, found in rows.items()},
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def machine() -> str:
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {python}"


def show(name: str, rows: list[Row]) -> None:
    table = Table(title=name, title_justify="left", title_style="bold")
    for heading in ("what", "measured", "bar", "met", "times"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row.what, row.measured, row.bar, "yes" if row.is_met else "NO", row.detail)
    Console(width=150).print(table)


main()
