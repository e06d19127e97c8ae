"""Runs real workers through a faulty proxy while the server is killed again and again.

One `Run` is one data folder, one model, some worker processes and many kills: at random moments,
and at the named places of `stepwell_server.failpoints`. What its workers wrote down is checked in
the end against what was promised.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stepwell

from tests import servers
from tests.faults.history import Event, Violation, check
from tests.faults.proxy import FaultyProxy
from tests.faults.worker import Task, clocks_in, parameters

ROOT = Path(__file__).resolve().parents[2]

FAILPOINTS = (
    "push.staged",
    "journal.before_append",
    "journal.appended",
    "journal.synced",
    "push.committed",
    "checkpoint.cut",
    "checkpoint.files_written",
    "checkpoint.manifest_written",
    "checkpoint.renamed",
    "checkpoint.verified",
    "journal.segments_removed",
    "recovery.read",
    "recovery.replayed",
)
"""Where a server is killed; those of a checkpoint are reached since one is written often."""

DEADLINE_S = 30.0


@dataclass(frozen=True)
class Plan:
    """What one run is.

    Attributes:
        durability: "always", "everysec" or "memory".
        is_sync: Whether a step needs a push of each worker.
        workers: Processes.
        kills: How many.
        seed: Of everything.
        transports: Of the workers, in turn.
        server: The module that is run as the server; another one has a seeded bug.
        environment: Of the server beside our own.
    """

    durability: str = "always"
    is_sync: bool = False
    workers: int = 3
    kills: int = 10
    seed: int = 0
    transports: tuple[str, ...] = ("http", "http", "auto")
    server: str = "stepwell_server"
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        violations: Of the promises.
        kills: By place.
        events: How many calls were made.
        duplicates: How many pushes had to be repeated after their effect.
        faults: Connections of the proxy by kind.
        version: Of the model in the end.
    """

    violations: list[Violation]
    kills: Counter[str]
    events: int
    duplicates: int
    faults: Counter[str]
    version: int


class Run:
    """One run; see the module.

    Args:
        folder: For the data and the logs.
        plan: What it is.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._folder = folder
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._events: list[Event] = []
        self._kills: Counter[str] = Counter()
        self._port = 0

    def make(self) -> Outcome:
        """Make the run and check what was seen."""
        server = self._start(None)
        self._port = int(server.url.rsplit(":", 1)[1])
        with FaultyProxy(self._port, self._plan.seed) as proxy:
            self._create(server.url)
            workers = [self._worker(index, proxy.url) for index in range(self._plan.workers)]
            readers = [self._read(worker) for worker in workers]
            try:
                for _ in range(self._plan.kills):
                    server = self._kill_and_start(server)
                time.sleep(0.3)
            finally:
                for worker in workers:
                    assert worker.stdin is not None
                    worker.stdin.close()
            self._end(workers, readers, server)
        version = self._last_look(server.url)
        assert server.stop() == 0, "the server stops cleanly in the end"
        plan = self._plan
        violations = check(
            self._events,
            plan.workers,
            is_sync=plan.is_sync,
            may_be_cut=plan.durability == "memory",
        )
        duplicates = sum(event.is_duplicate for event in self._events)
        return Outcome(
            violations, self._kills, len(self._events), duplicates, proxy.counts, version
        )

    # The server

    def _start(self, failpoint: str | None) -> servers.ServerProcess:
        plan = self._plan
        environment = {
            "STEPWELL_JOURNAL_MAX_BYTES": str(1 << 20),
            "STEPWELL_CHECKPOINT_EVERY_VERSIONS": "150",
            "STEPWELL_KEEP_CHECKPOINTS": "2",
            **plan.environment,
        }
        if failpoint is not None:
            environment["STEPWELL_FAILPOINT"] = failpoint
        server = servers.start(
            self._folder / "data",
            *("--durability", plan.durability),
            port=self._port,
            module=plan.server,
            **environment,
        )
        try:
            server.url = server.wait_for("ready")["address"]
        except AssertionError:
            if failpoint is None or server.process.wait(DEADLINE_S) >= 0:
                raise
            self._kills[failpoint.partition(":")[0]] += 1  # it was reached before it was ready
            return self._start(None)
        return server

    def _kill_and_start(self, server: servers.ServerProcess) -> servers.ServerProcess:
        """Kill the server, or wait until it has killed itself, and start the next one."""
        failpoint = self._next_failpoint
        if failpoint is None:
            time.sleep(self._rng.uniform(0.05, 1.0))
            server.kill()
            self._kills["random"] += 1
        else:
            try:
                server.process.wait(3.0)
                self._kills[failpoint.partition(":")[0]] += 1
            except subprocess.TimeoutExpired:  # the place is not reached in this mode
                server.kill()
                self._kills["random"] += 1
        server.wait()
        self._choose()
        return self._start(self._next_failpoint)

    _next_failpoint: str | None = None

    def _choose(self) -> None:
        """Choose how the next server dies."""
        self._next_failpoint = None
        if self._rng.random() < 0.5:
            count = self._rng.choice([1, 1, 2, 5, 20])
            self._next_failpoint = f"{self._rng.choice(FAILPOINTS)}:{count}"

    # The workers

    def _create(self, url: str) -> None:
        plan = self._plan
        consistency = stepwell.Sync(workers=plan.workers) if plan.is_sync else stepwell.Async()
        with stepwell.Client(url) as client:
            client.create_model(
                "clock",
                parameters(plan.workers),
                optimizer=stepwell.SGD(1.0),
                consistency=consistency,
            )

    def _worker(self, index: int, proxied: str) -> subprocess.Popen[str]:
        plan = self._plan
        task = Task(
            proxied,
            "clock",
            index,
            plan.workers,
            plan.transports[index % len(plan.transports)],
            plan.is_sync,
            plan.seed,
            pause_s=0.002,
        )
        log = open(self._folder / f"{task.name}.log", "w")  # noqa: SIM115  the child's own
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker", json.dumps(vars(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def _read(self, worker: subprocess.Popen[str]) -> threading.Thread:
        def read() -> None:
            assert worker.stdout is not None
            for line in worker.stdout:
                self._events.append(Event.from_json(json.loads(line)))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        return reader

    def _end(
        self,
        workers: list[subprocess.Popen[str]],
        readers: list[threading.Thread],
        server: servers.ServerProcess,
    ) -> None:
        """Wait for the workers; one that waits at a barrier is let go by closing the others'."""
        deadline = time.monotonic() + 3 * DEADLINE_S
        while any(worker.poll() is None for worker in workers):
            assert time.monotonic() < deadline, "the workers end"
            if self._plan.is_sync:
                self._close_sessions_of(workers, server.url)
            time.sleep(0.1)
        for worker, reader in zip(workers, readers, strict=True):
            reader.join(DEADLINE_S)
            assert worker.returncode == 0, self._log_of(workers.index(worker))

    def _close_sessions_of(self, workers: list[subprocess.Popen[str]], url: str) -> None:
        with servers.http(url) as http:
            for index, worker in enumerate(workers):
                if worker.poll() is not None:
                    http.delete(f"/v1/models/clock/workers/w{index}")

    def _log_of(self, index: int) -> str:
        return (self._folder / f"w{index}.log").read_text()[-3000:]

    def _last_look(self, url: str) -> int:
        """Pull once more, when nobody pushes."""
        with stepwell.Client(url) as client:
            start = time.monotonic()
            pulled = client.model("clock").pull()
            self._events.append(
                Event(
                    -1,
                    "pull",
                    start,
                    time.monotonic(),
                    pulled.incarnation,
                    version=pulled.version,
                    clocks=clocks_in(pulled),
                )
            )
            return int(pulled.version)


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain values."""
    return {
        "kills": dict(outcome.kills),
        "calls": outcome.events,
        "duplicates": outcome.duplicates,
        "faults": dict(outcome.faults),
        "version": outcome.version,
        "violations": [str(violation) for violation in outcome.violations],
    }
