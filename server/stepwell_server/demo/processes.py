"""The processes of the demo: a server and its workers, started, watched and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepwell_core.errors import StepwellError

from stepwell_server.demo.worker import Record, Task

START_S = 60.0
STOP_S = 30.0
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1  # of Linux, from <sys/prctl.h>
_LIBC = ctypes.CDLL(None)  # not looked for between fork and exec


class DemoFailed(StepwellError):
    """A process of the demo ended that should not have."""

    code = "demo_failed"


@contextlib.contextmanager
def server(data_dir: Path, log: Path) -> Iterator[str]:
    """Run a server on a free loopback port; gives its URL, and stops it at the end.

    Raises:
        DemoFailed: It did not become ready.
    """
    command = [sys.executable, "-m", "stepwell_server", "serve"]
    options = ["--port", "0", "--data-dir", str(data_dir), "--log-format", "json"]
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            command + options,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            preexec_fn=_end_with_parent,  # no other thread runs yet
        )
    try:
        yield _address(process, log)
    finally:
        _stop(process)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return where the server says that it is ready."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and '"ready"' in line and line.endswith("}"):
                address: str = json.loads(line)["address"]
                return address
        time.sleep(_POLL_S)
    raise DemoFailed(f"The server did not become ready; see {log}:\n{_tail(log)}")


@dataclass(eq=False)
class _Process:
    """One worker process."""

    worker: str
    process: subprocess.Popen[bytes]
    log: Path
    reader: threading.Thread
    is_killed: bool = False
    is_suspended: bool = False


class Workers:
    """Worker processes, and what they report.

    Args:
        url: Of the server.
        tasks: One a worker.
        folder: Where their logs go.
    """

    def __init__(self, url: str, tasks: Sequence[Task], folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._started: list[_Process] = []
        for task in tasks:
            self.add(task)

    @property
    def is_running(self) -> bool:
        """Whether any worker has still something to do or to say."""
        return any(each.reader.is_alive() for each in self._started)

    def add(self, task: Task) -> None:
        """Start one more worker; one of the same name has to have ended."""
        log = self._folder / f"{task.worker}.log"
        process = _start(self._url, task, log)
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._started.append(_Process(task.worker, process, log, reader))
        reader.start()

    def kill(self, worker: str) -> None:
        """End a worker as a crash would."""
        each = self._find(worker)
        each.is_killed = True
        each.process.kill()
        each.process.wait()

    def suspend(self, worker: str) -> None:
        """Let a worker do nothing, not even say that it lives, until `resume`."""
        each = self._find(worker)
        each.is_suspended = True
        each.process.send_signal(signal.SIGSTOP)

    def resume(self, worker: str) -> None:
        """Let a worker go on; does nothing to one that goes on already, or is no more."""
        each = self._find(worker)
        each.is_suspended = False
        each.process.send_signal(signal.SIGCONT)

    def reported(self) -> list[Record]:
        """Return what was reported since the last call."""
        return [self._records.get() for _ in range(self._records.qsize())]

    def check(self) -> None:
        """Raise if a worker failed.

        Raises:
            DemoFailed: With the end of its log.
        """
        for each in self._started:
            if each.process.poll() not in (None, 0) and not each.is_killed:
                raise DemoFailed(
                    f"A worker ended with status {each.process.returncode}; see {each.log}:\n"
                    f"{_tail(each.log)}"
                )

    def join(self) -> None:
        """Wait until all have ended, and check them."""
        for each in self._started:
            each.process.wait()
            each.reader.join()
        self.check()

    def stop(self) -> None:
        """End those that still run."""
        for each in self._started:
            if each.is_suspended:
                each.process.send_signal(signal.SIGCONT)  # else it would not hear of its end
            _stop(each.process)

    def _find(self, worker: str) -> _Process:
        """Return the process that has a name now: the last that was started with it."""
        return next(each for each in reversed(self._started) if each.worker == worker)

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "a worker reports through a pipe"
        with process.stdout as lines:
            for line in lines:
                self._records.put(Record(**json.loads(line)))


def _start(url: str, task: Task, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stepwell_server", "demo-worker", "--url", url, "--report"]
    options = ["--model", task.model, "--name", task.worker, "--seed", str(task.seed)]
    options += ["--steps", str(task.steps), "--batch-size", str(task.batch_size)]
    if task.index is not None:
        options += ["--index", str(task.index)]
    if task.until is not None:
        options += ["--until", str(task.until)]
    with open(log, "ab") as stderr:  # behind what an earlier process of that name said
        return subprocess.Popen(
            command + options,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | single_threaded(),
            preexec_fn=_end_with_parent,  # takes no lock that another thread might hold
        )


def single_threaded() -> dict[str, str]:
    """Return the environment in which a matrix product is the same bits in every run."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, "1")


def _end_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the demo ends, even by kill -9: nothing is left behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
