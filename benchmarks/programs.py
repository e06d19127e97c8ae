"""The parent's side of a measurement: programs in processes of their own, asked turn by turn."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 300.0
"""For the longest turn, a federated round on a slow disk, and for a peer's start."""

SHUTDOWN_S = 15.0


class ProgramFailed(Exception):
    """A program that was measured ended, or did not answer in time."""


class Program:
    """One child that takes turns; see `benchmarks.turns`. A context manager that ends it.

    Args:
        module: Of this package, run with `python -m`.
        arguments: On its command line.
        python: The interpreter, of whatever environment.
        environment: Variables beside those of this process.

    Attributes:
        facts: What it said when it was ready.

    Raises:
        ProgramFailed: It ended, or is not ready in time.
    """

    facts: dict[str, Any]

    def __init__(
        self,
        module: str,
        *arguments: object,
        python: Path | str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.module = module
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in close()
        self._process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.{module}", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,  # so that select() sees all that is to be read
            start_new_session=True,  # so that what it starts can be ended with it
        )
        try:
            self.facts = self.hear()
        except BaseException:
            self.close()
            raise

    def ask(self, turn: str, **arguments: Any) -> dict[str, Any]:
        """Let it take a turn and return its answer."""
        self.tell(turn, **arguments)
        return self.hear()

    def seconds(self, turn: str) -> float:
        """Let it take a timed turn and return the seconds that it measured."""
        return float(self.ask(turn)["seconds"])

    def tell(self, turn: str, **arguments: Any) -> None:
        """Let it take a turn and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"turn": turn, **arguments}).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """Return its next answer.

        Raises:
            ProgramFailed: It ended without one, or takes too long.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + DEADLINE_S
        while select.select([self._process.stdout], [], [], _left_s(deadline))[0]:
            line = self._process.stdout.readline()
            if not line:
                raise ProgramFailed(f"benchmarks.{self.module} ended.\n{self._last_words()}")
            if line.startswith(b"{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise ProgramFailed(
            f"benchmarks.{self.module} did not answer for {DEADLINE_S:g} s.\n{self._last_words()}"
        )

    def pause(self) -> None:
        """Stop it and all that it started, so that it takes nothing from others."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it and all that it started as a crash would; `close` is still to be called."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(SHUTDOWN_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        return "".join(self._errors.readlines()[-20:])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
