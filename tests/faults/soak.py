"""Runs for a long time: `make soak`, or python -m tests.faults.soak --kills 1000 --minutes 60.

Run follows run, each with a seed of its own: always and everysec, asynchronous and synchronous,
kills at random moments and at named places, all faults of the proxy. A line a run, and a JSON
summary in the end. Exits with 1 if anything that is promised did not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.crashes import Plan, Run

KILLS_A_RUN = 20


def main() -> int:
    """Run until there were enough kills and enough time; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="at least so many")
    parser.add_argument("--minutes", type=float, default=60.0, help="at least so long")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--json", type=Path, help="where the summary goes as well")
    arguments = parser.parse_args()
    began, seed = time.monotonic(), arguments.seed
    kills: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    calls = duplicates = 0
    violations: list[str] = []
    while kills.total() < arguments.kills or time.monotonic() - began < arguments.minutes * 60:
        plan = Plan(
            durability="always" if seed % 2 else "everysec",
            is_sync=seed % 4 >= 2,
            kills=KILLS_A_RUN,
            seed=seed,
        )
        with tempfile.TemporaryDirectory(prefix="stepwell-soak-") as folder:
            outcome = Run(Path(folder), plan).make()
        kills += outcome.kills
        faults += outcome.faults
        calls, duplicates = calls + outcome.events, duplicates + outcome.duplicates
        violations += [f"seed {seed}: {violation}" for violation in outcome.violations]
        minutes = (time.monotonic() - began) / 60
        print(
            f"{minutes:6.1f} min  seed {seed}  {plan.durability} "
            f"{'sync' if plan.is_sync else 'async'}  {kills.total()} kills  {calls} calls  "
            f"{duplicates} duplicates  {len(violations)} violations",
            flush=True,
        )
        seed += 1
    summary = {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "runs": seed - arguments.seed,
        "first_seed": arguments.seed,
        "kills": kills.total(),
        "kills_by_place": dict(kills.most_common()),
        "connections_by_fault": dict(faults.most_common()),
        "calls": calls,
        "duplicates": duplicates,
        "violations": violations,
    }
    text = json.dumps(summary, indent=1)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
