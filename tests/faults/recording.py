"""Records the calls of one process, a JSON line each, as they happen; and reads them again.

Times are CLOCK_MONOTONIC, which all processes of a machine share. A push is written down before it
is sent too: a worker that is killed in between leaves one of unknown outcome.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.history import Clock, History, Pull, Push


class Recorder:
    """Writes the calls of one process.

    Args:
        path: Of the file; made anew.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("x")
        self._calls = 0

    def begin(self, push: Push) -> int:
        """Note that a push is about to be sent; returns what `end` is told."""
        self._calls += 1
        self._write("push", call=self._calls, **{**asdict(push), "end": None})
        return self._calls

    def end(self, call: int, push: Push) -> None:
        """Note what became of it."""
        self._write("push", call=call, **asdict(push))

    def pull(self, pull: Pull) -> None:
        """Note a pull."""
        self._write("pull", **asdict(pull))

    def error(self, operation: str, code: str) -> None:
        """Note an error that a worker met, by its code."""
        self._write("error", operation=operation, code=code, at=time.monotonic())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, kind: str, **values: Any) -> None:
        self._file.write(json.dumps({"kind": kind, **values}) + "\n")
        self._file.flush()


def read(paths: Iterable[Path], history: History) -> dict[str, int]:
    """Add what was recorded to a history; returns how often each error was met."""
    errors: dict[str, int] = {}
    for path in paths:
        pushes: dict[int, Push] = {}
        for line in path.read_text().splitlines():
            try:
                values = json.loads(line)
            except ValueError:  # its process was killed while it wrote
                continue
            kind = values.pop("kind")
            if kind == "push":
                call, end = values.pop("call"), values.pop("end")
                pushes[call] = Push(**values, end=inf if end is None else end)
            elif kind == "pull":
                clocks = tuple(tuple(clock) for clock in values.pop("clocks"))
                history.pulls.append(Pull(**values, clocks=clocks))
            else:
                errors[values["code"]] = errors.get(values["code"], 0) + 1
        history.pushes += pushes.values()
    return errors


def clocks_in(parameters: Iterable[np.ndarray], most: int = 4) -> tuple[Clock, ...]:
    """Return the different rows in the tensors of a pull, a few at most."""
    found: dict[Clock, None] = {}
    for tensor in parameters:
        rows = tensor.reshape(-1, tensor.shape[-1])
        first = rows[0]
        found[tuple(first.tolist())] = None
        others = rows[(rows != first).any(axis=1)]
        for row in np.unique(others, axis=0)[:most] if len(others) else ():
            found[tuple(row.tolist())] = None
    return tuple(found)[: most + 1]


def unknown(push: Push) -> Push:
    """Return the push as it is while nobody knows what became of it."""
    return replace(push, outcome="unknown", version=None)
