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
from pathlib import Path

from stepwell_core.errors import StepwellError

from stepwell_server.demo.worker import Record, Task

START_S = 60.0
STOP_S = 30.0
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1  # of Linux, from <sys/prctl.h>


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


class Workers:
    """Worker processes, and what they report.

    Args:
        url: Of the server.
        tasks: One a worker.
        folder: Where their logs go.
    """

    def __init__(self, url: str, tasks: Sequence[Task], folder: Path) -> None:
        self._records: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._logs = [folder / f"{task.worker}.log" for task in tasks]
        self._processes = [
            _start(url, task, log) for task, log in zip(tasks, self._logs, strict=True)
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(process,), daemon=True)
            for process in self._processes
        ]
        for reader in self._readers:
            reader.start()

    @property
    def is_running(self) -> bool:
        """Whether any worker has still something to do or to say."""
        return any(reader.is_alive() for reader in self._readers)

    def reported(self) -> list[Record]:
        """Return what was reported since the last call."""
        return [self._records.get() for _ in range(self._records.qsize())]

    def check(self) -> None:
        """Raise if a worker failed.

        Raises:
            DemoFailed: With the end of its log.
        """
        for process, log in zip(self._processes, self._logs, strict=True):
            if process.poll() not in (None, 0):
                raise DemoFailed(
                    f"A worker ended with status {process.returncode}; see {log}:\n{_tail(log)}"
                )

    def join(self) -> None:
        """Wait until all have ended, and check them."""
        for process in self._processes:
            process.wait()
        for reader in self._readers:
            reader.join()
        self.check()

    def stop(self) -> None:
        """End those that still run."""
        for process in self._processes:
            _stop(process)

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
    with open(log, "wb") as stderr:
        return subprocess.Popen(
            command + options,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=os.environ | single_threaded(),
            preexec_fn=_end_with_parent,  # no other thread holds a lock
        )


def single_threaded() -> dict[str, str]:
    """Return the environment in which a matrix product is the same bits in every run."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return dict.fromkeys(names, "1")


def _end_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the demo ends, even by kill -9: nothing is left behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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
