"""Kills servers for an hour or more: `make soak`, or python -m tests.faults.soak --kills 1000.

Run follows run, each of another kind and with a seed of its own, until there were so many kills and
so many minutes. A line a minute, and a JSON summary in the end; the exit code is 1 if a promise was
not kept. A run that found something leaves its folder, and says which plan it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.faults.crashes import run
from tests.faults.history import Violation
from tests.faults.plans import EVERYSEC_POINTS, RESTORE_POINTS, Plan, Report

KILLS = 20
KINDS = (
    Plan(0, KILLS),
    Plan(0, KILLS, durability="everysec", points=EVERYSEC_POINTS),
    Plan(0, KILLS, is_sync=True),
    Plan(0, KILLS, transport="auto", large_rows=30_000),
    Plan(0, KILLS, power_losses=0.7),
    Plan(0, KILLS, durability="everysec", power_losses=0.7, points=()),
    Plan(0, KILLS, restores=True, points=RESTORE_POINTS),
    Plan(0, KILLS, restores=True, power_losses=0.7, points=RESTORE_POINTS),
    Plan(
        *(0, KILLS, "everysec"),
        points=EVERYSEC_POINTS,
        is_sync=True,
        transport="auto",
        large_rows=30_000,
    ),
    Plan(0, KILLS, restores=True, transport="auto", large_rows=30_000),
    Plan(0, KILLS, workers=5, large_rows=10_000),
    Plan(0, KILLS, is_sync=True, power_losses=0.7),
    Plan(0, KILLS, durability="everysec", points=EVERYSEC_POINTS, restores=True, workers=2),
)
"""The runs, in turn."""

LINE_EVERY_S = 60.0


@dataclass
class Totals:
    """What all runs have seen."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, report: Report) -> None:
        """Add a run."""
        self.runs += 1
        missed = sorted(set(report.plan.points) - report.kills.keys())
        if missed and report.plan.reaches_all and report.kills.total() >= report.plan.kills:
            self.violations.append(f"never killed at {', '.join(missed)}: {report.plan}")
            print(self.violations[-1], flush=True)
        self.kills += report.kills
        self.errors += report.errors
        for name in (
            "stops",
            "recoveries",
            "pushes",
            "pulls",
            "duplicates",
            "cuts",
            "connections",
            "broken",
        ):
            self.counts[name] += getattr(report, name)
        self.violations += [str(violation) for violation in report.violations]

    @property
    def minutes(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.began) / 60

    def line(self) -> str:
        """Return one line for people."""
        return (
            f"{self.minutes:6.1f} min  {self.runs} runs  {self.kills.total()} kills  "
            f"{self.counts['pushes']} pushes  {self.counts['duplicates']} duplicates  "
            f"{self.counts['recoveries']} recoveries  {len(self.violations)} violations"
        )

    def summary(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "minutes": round(self.minutes, 1),
            "runs": self.runs,
            "kills": self.kills.total(),
            "kills_by_kind": dict(self.kills.most_common()),
            **self.counts,
            "errors": dict(self.errors.most_common()),
            "violations": len(self.violations),
            "first_violations": self.violations[:20],
        }


def attempt(plan: Plan) -> Report:
    """Make a run in a folder of its own, which stays if something was found."""
    folder = Path(tempfile.mkdtemp(prefix="stepwell-soak-"))
    try:
        report = run(plan, folder)
    except Exception:  # a soak goes on, and says so in the end
        report = Report(plan, violations=[Violation("run", traceback.format_exc()[-3000:])])
    if report.violations:
        print(f"in {folder}:\n{report}", flush=True)
    else:
        shutil.rmtree(folder)
    return report


def main() -> int:
    """Run until there were enough kills and minutes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="at least so many [1000]")
    parser.add_argument("--minutes", type=float, default=60.0, help="at least so long [60]")
    parser.add_argument("--seed", type=int, default=0, help="of the first run [0]")
    chosen = parser.parse_args()
    totals, said_at = Totals(), time.monotonic()
    while totals.kills.total() < chosen.kills or totals.minutes < chosen.minutes:
        plan = replace(KINDS[totals.runs % len(KINDS)], seed=chosen.seed + totals.runs)
        totals.add(attempt(plan))
        if time.monotonic() - said_at >= LINE_EVERY_S:
            said_at = time.monotonic()
            print(totals.line(), flush=True)
    print(totals.line())
    print(json.dumps(totals.summary(), indent=2))
    return 1 if totals.violations else 0


if __name__ == "__main__":
    sys.exit(main())
