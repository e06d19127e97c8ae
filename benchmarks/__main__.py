"""Run suites, print their tables, and leave JSON and a picture: `python -m benchmarks [suite ...]`.

A figure that misses its bar is shown. A workload that breaks makes the command fail in the end, and
what the other suites found is kept.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path

from benchmarks import picture, report
from benchmarks.measure import Result
from benchmarks.programs import ROOT

DEFAULT = {
    "update": "benchmarks.update",
    "startup": "benchmarks.startup",
    "wire.large": "benchmarks.wire.large",
    "wire.tensors": "benchmarks.wire.tensors",
    "wire.small": "benchmarks.wire.small",
    "wire.workers": "benchmarks.wire.workers",
    "wire.memory": "benchmarks.wire.memory",
    "wire.tls": "benchmarks.wire.tls",
    "workers": "benchmarks.workers",
    "durability": "benchmarks.durability",
    "checkpoint": "benchmarks.checkpoint",
}
"""Suites that run if none is named."""

SUITES = DEFAULT | {
    "metrics": "benchmarks.metrics",
    "torch": "benchmarks.torch_step",
    "dashboard": "benchmarks.dashboard",
    "peers": "benchmarks.peers.suite",
    "federated": "benchmarks.federated.suite",
}

BUILD = ROOT / "build"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--json", type=Path, help="where the results go; default: build/")
    parser.add_argument("--picture", type=Path, help="where the picture goes; default: beside them")
    arguments = parser.parse_args()
    try:
        chosen = [suite for name in arguments.suites for suite in _named(name)] or list(DEFAULT)
    except KeyError as error:
        parser.error(f"there is no suite {error}; there are {', '.join(SUITES)}")
    results, broken = {}, []
    for name in chosen:
        try:
            results[name] = importlib.import_module(SUITES[name]).run()
        except Exception:
            traceback.print_exc()
            broken.append(name)
        else:
            report.show(name, results[name])
    _leave(results, arguments)
    if broken:
        sys.exit(f"broken: {', '.join(broken)}")


def _leave(results: dict[str, Result], arguments: argparse.Namespace) -> None:
    """Write results and picture."""
    BUILD.mkdir(exist_ok=True)
    path = arguments.json or BUILD / ("-".join(["benchmarks", *arguments.suites]) + ".json")
    document = report.to_json(results)
    path.write_text(document)
    print(f"results: {path}")
    if picture.bars(document):
        path = arguments.picture or path.with_suffix(".png")
        picture.draw(document, path)
        print(f"picture: {path}")


def _named(name: str) -> list[str]:
    """Return the suites that a name stands for: itself, or all below it, as in `wire`.

    Raises:
        KeyError: There is none.
    """
    found = [suite for suite in SUITES if suite == name or suite.startswith(f"{name}.")]
    if not found:
        raise KeyError(name)
    return found


if __name__ == "__main__":
    main()
