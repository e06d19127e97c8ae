"""Kills a server again and again under real workers, and checks the history of their calls.

One `Plan` is one data folder, one model, a few worker processes that reach the server through a
faulty proxy (or through shared memory), and so many kills: by SIGKILL at random moments, at named
places (`stepwell_server.failpoints`), or by a loss of power. Beside them checkpoints are written
and restored. `run` makes it all and returns what was seen; the seed is in each plan.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import stepwell

from tests import servers
from tests.faults import recording
from tests.faults.history import Branch, History, Pull, Violation, check
from tests.faults.plans import (
    CHECKPOINT_POINTS,
    EXTRA_KILLS,
    RESTORE_POINTS,
    START_POINTS,
    Plan,
    Report,
    faults,
)
from tests.faults.proxy import FaultyProxy, Schedule
from tests.faults.recording import clocks_in
from tests.faults.workload import Task, zeros

MODEL = "clock"
ROOT = Path(__file__).resolve().parents[2]

TAIL_S = 4.0
"""What `everysec` may lose: a second, and what a busy machine adds to it."""

WAIT_S = 3.0
"""How long a server may take to reach the place where it is to die; else it is killed there."""

RECORD_BYTES = 200
"""Of one recorded call, about."""

HARMLESS = {
    "connection_failed",
    "connection_lost",
    "timed_out",
    "transport_error",
    "unexpected_answer",
    "unavailable",
    "shutting_down",
    "stale_incarnation",
    "unknown_session",
    "push_not_found",
    "versions_exhausted",
    "journal_behind",
    "staging_full",
}
"""Codes that a worker may meet while its server is killed and its connections break."""


def run(plan: Plan, folder: Path) -> Report:
    """Make a run in a folder, and check its history."""
    return _Run(plan, folder).make()


class _Run:
    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._rng = random.Random(plan.seed)
        self._port = servers.free_port()
        self._url = f"http://127.0.0.1:{self._port}"
        self._http = servers.http(self._url)
        self._report = Report(plan)
        self._checkpoints: dict[str, tuple[str, int]] = {}  # incarnation and version by id
        self._restoring: str | None = None  # the checkpoint, while the answer is not there
        self._boots = 0
        self._points = deque(self._rng.sample(plan.points, len(plan.points)))
        self._missed = ""  # the place that was not reached the last time
        names = tuple(f"w{n}" for n in range(plan.workers))
        self._history = History(list(names), shares=plan.workers if plan.is_sync else 1)
        self._killed_at = 0.0
        rows = sum(array.nbytes for array in zeros(plan.workers, plan.large_rows).values())
        self._proxy = FaultyProxy(self._url, Schedule(plan.seed, faults(rows + 600)))

    def make(self) -> Report:
        """Make the run; everything that was started has ended then."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._http)
            server = self._start()
            stack.callback(lambda: self._server.process.kill())
            assert server is not None
            self._create()
            self._note_branch()
            stack.enter_context(self._proxy)
            workers = [stack.enter_context(self._worker(n)) for n in range(self._plan.workers)]
            for worker in workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "open\n", self._log_of(workers.index(worker))
            while self._is_to_go_on():
                self._kill_once()
            if self._server.process.poll() is not None:
                self._start_surely()
            if not self._wait_for_calls(least=300, most_s=servers.DEADLINE_S):
                self._violation("calls", "the workers were not answered, though nobody kills now")
            self._end(workers)
        self._read()
        return self._report

    def _is_to_go_on(self) -> bool:
        kills, plan = self._report.kills, self._plan
        is_any_left = plan.reaches_all and not set(plan.points) <= kills.keys()
        return kills.total() < plan.kills + (EXTRA_KILLS if is_any_left else 0)

    def _next_point(self) -> str:
        """Return the named place where the server is killed next; empty at a random moment."""
        number = self._report.kills.total()
        if not self._points or not (number % 3 or number >= self._plan.kills):
            return ""
        return self._points[0]

    # The server

    def _start(self, failpoint: str = "") -> servers.ServerProcess | None:
        """Start the server; returns None if it died at the failpoint before it was ready."""
        plan = self._plan
        environment = {
            "STEPWELL_FAILPOINT": failpoint,
            "STEPWELL_CHECKPOINT_EVERY_VERSIONS": "400",
            "STEPWELL_JOURNAL_MAX_BYTES": str(1 << 20),
            "STEPWELL_KEEP_CHECKPOINTS": "4",
            "STEPWELL_PUSH_WAIT_S": "3",
            "STEPWELL_SHUTDOWN_GRACE_S": "2",
            "STEPWELL_MEMORY_SOCKET": str(self._folder / "memory.sock"),
            "FAULTS_BUG": plan.bug,
            "FAULTS_BOOT": f"boot-{self._boots}",
        }
        if plan.power_losses:
            environment["FAULTS_POWER"] = str(self._rng.randrange(1 << 30))
        self._server = servers.start(
            self._folder / "data",
            *("--durability", plan.durability),
            port=self._port,
            module="tests.faults.server_program",
            **environment,
        )
        try:
            self._server.wait_for("ready")
        except AssertionError as error:
            code = self._server.wait()
            if code != -signal.SIGKILL:
                self._violation("start", f"the server did not start ({code}): {str(error)[-2000:]}")
                raise
            return None
        return self._server

    def _start_surely(self) -> None:
        server = self._start()
        assert server is not None, "nobody kills it"
        self._report.recoveries += 1
        self._note_branch()

    def _kill_once(self) -> None:
        """Start the server if it is not there, let it work for a moment, and kill it."""
        plan, rng = self._plan, self._rng
        point = self._next_point()
        if self._server.process.poll() is None:  # the first time
            point = ""
        else:
            count = 1 if point in START_POINTS + RESTORE_POINTS else rng.choice((1, 1, 2, 7, 30))
            if point in CHECKPOINT_POINTS:
                count = rng.choice((1, 2))
            if point == self._missed:
                count = 1
            if self._start(f"{point}:{count}" if point else "") is None:
                self._count(point)
                return
            self._report.recoveries += 1
            if not self._is_answered(self._note_branch):
                self._count(point)
                return
        self._work(point)
        self._missed = ""
        if point and self._has_ended():
            self._count(point)
            return
        self._missed = point
        if rng.random() < plan.power_losses:
            self._server.process.send_signal(signal.SIGUSR1)
            self._boots += 1
            self._count("power")
        elif rng.random() < plan.stops:
            self._report.stops += 1
            code = self._server.stop()
            if code:
                self._violation("end", f"a stop ended with {code}: {self._server.events[-3:]}")
        else:
            self._server.process.kill()
            self._count("random")

    def _work(self, point: str) -> None:
        """Let the workers work, and be the administrator meanwhile."""
        plan, rng = self._plan, self._rng
        self._wait_for_calls()
        time.sleep(rng.uniform(0.0, plan.longest_s))
        for _ in range(2 if point in CHECKPOINT_POINTS else 1):
            if point in CHECKPOINT_POINTS or rng.random() < 0.4:
                self._is_answered(self._checkpoint)
        if plan.restores and (point in RESTORE_POINTS or rng.random() < 0.5):
            self._is_answered(self._restore)
        if not point:
            time.sleep(rng.uniform(0.0, plan.longest_s / 2))

    def _wait_for_calls(self, least: int = 20, most_s: float = WAIT_S) -> bool:
        """Wait until workers were answered by this server; not for ever, it may be dead already.

        Returns:
            Whether they were.
        """
        deadline = time.monotonic() + most_s
        enough = self._recorded() + least * RECORD_BYTES
        while self._recorded() < enough and time.monotonic() < deadline:
            if self._server.process.poll() is not None:
                return False
            time.sleep(0.01)
        return self._recorded() >= enough

    def _recorded(self) -> int:
        return sum(path.stat().st_size for path in self._folder.glob("w*.jsonl"))

    def _has_ended(self) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._server.process.wait(WAIT_S)
        return self._server.process.poll() is not None

    def _count(self, kind: str) -> None:
        self._killed_at = time.monotonic()
        code = self._server.wait()
        if code != -signal.SIGKILL:
            self._violation("end", f"the server ended with {code}: {self._server.events[-3:]}")
        self._report.kills[kind] += 1
        if kind in self._plan.points:
            self._points.rotate(-1)
        for event in self._server.events:
            is_without_power = "the power is off" in str(event.get("reason"))
            is_critical = event.get("level") == "critical" and not is_without_power
            if is_critical or "Traceback" in str(event.get("event")):
                self._violation("log", str(event)[:2000])

    def _violation(self, rule: str, sentence: str) -> None:
        self._report.violations.append(Violation(rule, sentence))

    # The administrator

    def _is_answered(self, ask: Any) -> bool:
        """Ask the server something; returns False if it died meanwhile."""
        try:
            ask()
        except httpx.TransportError:
            return False
        return True

    def _ask(self, method: str, path: str = "", **options: Any) -> dict[str, Any]:
        answer = self._http.request(method, f"/v1/models/{MODEL}{path}", **options)
        if answer.status_code >= 400:
            self._report.errors[answer.json()["code"]] += 1
            if answer.status_code == 500 or answer.json()["code"] not in HARMLESS | {
                "checkpoint_not_found",  # it was too old to be kept
            }:
                self._violation("answer", f"{method} {path}: {answer.text}")
            return {}
        found: dict[str, Any] = answer.json()
        return found

    def _create(self) -> None:
        plan = self._plan
        with stepwell.Client(self._url) as client:
            client.create_model(
                MODEL,
                zeros(plan.workers, plan.large_rows),
                optimizer=stepwell.SGD(1.0),
                consistency=stepwell.Sync(workers=plan.workers) if plan.is_sync else None,
            )

    def _checkpoint(self) -> None:
        self._note_checkpoint(self._ask("POST", "/checkpoints"))

    def _note_checkpoint(self, summary: dict[str, Any]) -> None:
        if summary:
            self._checkpoints[summary["id"]] = (summary["incarnation"], summary["version"])

    def _restore(self) -> None:
        listed = self._ask("GET", "/checkpoints").get("checkpoints", [])
        for summary in listed:
            if "incarnation" in summary:
                self._note_checkpoint(summary)
        if not listed:
            return
        self._restoring = self._rng.choice(listed)["id"]
        restored = self._ask("POST", f"/checkpoints/{self._restoring}/restore")
        if restored:
            self._begin(restored["incarnation"], restored["version"])
        self._restoring = None

    def _begin(self, incarnation: str, version: int | None) -> None:
        assert self._restoring is not None
        parent, cut = self._checkpoints[self._restoring]
        self._history.branches.append(Branch(incarnation, "restored", parent, cut, version))

    def _note_branch(self) -> None:
        """Note whether the model has another incarnation than before, and why."""
        said = self._ask("GET")
        incarnation, branches = said["incarnation"], self._history.branches
        if not branches:
            branches.append(Branch(incarnation, "created"))
        elif incarnation != branches[-1].incarnation:
            if self._restoring is not None and not self._is_told_of_a_cut():
                self._begin(incarnation, self._first_version(incarnation))
            else:
                version = said["durability"]["recovered"]["version"]
                parent = branches[-1].incarnation
                branches.append(
                    Branch(incarnation, "recovered", parent, version, version, self._killed_at)
                )
        self._restoring = None

    def _is_told_of_a_cut(self) -> bool:
        recovered = [e for e in self._server.events if e["event"] == "model_recovered"]
        return bool(recovered) and not recovered[-1]["is_whole"]

    def _first_version(self, incarnation: str) -> int | None:
        """Return the first version of a history, which a checkpoint was written of."""
        listed = self._ask("GET", "/checkpoints").get("checkpoints", [])
        versions = [c["version"] for c in listed if c.get("incarnation") == incarnation]
        return min(versions, default=None)

    # The workers

    @contextlib.contextmanager
    def _worker(self, place: int) -> Iterator[subprocess.Popen[str]]:
        plan = self._plan
        task = Task(
            url=self._url if plan.transport == "auto" else self._proxy.url,
            model=MODEL,
            workers=tuple(self._history.workers),
            place=place,
            record=str(self._folder / f"w{place}.jsonl"),
            seed=plan.seed,
            step=-float(self._history.shares),
            is_sync=plan.is_sync,
            transport=plan.transport,
            large_rows=plan.large_rows,
            on_stale="raise" if place else "repull",
        )
        command = [sys.executable, "-m", "tests.faults.workload", task.to_json()]
        with (self._folder / f"w{place}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _end(self, workers: list[subprocess.Popen[str]]) -> None:
        """Let the workers end in good weather, look once more, and stop the server cleanly."""
        self._proxy.schedule = Schedule()
        order = "stop"
        if self._plan.is_sync:  # all of them with the same step, which is yet to come
            order += f" {self._ask('GET')['version'] + 300}"
        for worker in workers:
            assert worker.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(order + "\n")
                worker.stdin.flush()
        for n, worker in enumerate(workers):
            code = worker.wait(servers.DEADLINE_S)
            if code:
                self._violation("worker", f"w{n} ended with {code}: {self._log_of(n)}")
        self._look()
        code = self._server.stop()
        if code:
            self._violation("end", f"the server stopped with {code}: {self._server.events[-5:]}")
        if self._plan.kills:
            self._start_surely()  # a clean stop keeps everything, the incarnation too
            self._look()
            self._server.stop()

    def _log_of(self, place: int) -> str:
        return (self._folder / f"w{place}.log").read_text()[-3000:]

    def _look(self) -> None:
        with stepwell.Client(self._url, transport="http") as client:
            start = time.monotonic()
            pulled = client.model(MODEL).pull()
            end = time.monotonic()
        clocks = clocks_in(pulled.values())
        self._history.pulls.append(
            Pull("harness", start, end, pulled.incarnation, pulled.version, clocks)
        )

    def _read(self) -> None:
        """Check all that was recorded."""
        report, history, plan = self._report, self._history, self._plan
        report.errors.update(recording.read(sorted(self._folder.glob("w*.jsonl")), history))
        report.pushes, report.pulls = len(history.pushes), len(history.pulls)
        report.duplicates = sum(push.is_duplicate for push in history.pushes)
        report.cuts = len(history.branches) - 1
        report.connections, report.broken = self._proxy.connections, self._proxy.broken
        promised = plan.promised or plan.durability
        tail_s = TAIL_S if promised == "everysec" and plan.power_losses else None
        report.violations += check(history, may_cut=plan.may_cut, tail_s=tail_s)
        for code in sorted(report.errors.keys() - HARMLESS):
            self._violation("error", f"workers met {code} {report.errors[code]} times")
