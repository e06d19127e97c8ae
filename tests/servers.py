"""Real servers for tests: a process of its own, or a thread of this one where speed matters.

Both listen on a free loopback port and keep their data where the test says. Nothing here sleeps:
a process is waited for by the lines that it logs, a thread by an event, all with a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

# Kernels are compiled once for all servers and all runs of the tests, by whoever comes first.
os.environ.setdefault(
    "STEPWELL_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "kernels")
)

DEADLINE_S = 60.0
"""For a start that has to compile on a busy machine, and for everything else that may not hang."""


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass
class ServerProcess:
    """A `stepwell serve` that runs.

    Attributes:
        url: Where it listens.
        process: The child of this process.
        events: What it has logged so far.
    """

    process: subprocess.Popen[str]
    url: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _lines: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, event: str) -> dict[str, Any]:
        """Return the next log entry with that event; fails if the process ends before."""
        while (line := self._lines.get(timeout=DEADLINE_S)) is not None:
            self.events.append(json.loads(line) if line.startswith("{") else {"event": line})
            if self.events[-1]["event"] == event:
                return self.events[-1]
        self._lines.put(None)  # whoever asks next is told the same
        raise AssertionError(f"the server ended without {event!r}: {self.events}")

    def terminate(self) -> None:
        """Send SIGTERM and do not wait."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process as a crash would."""
        self.process.kill()
        self.wait()

    def stop(self) -> int:
        """Stop as an operator would; returns the exit code."""
        self.terminate()
        return self.wait()

    def wait(self) -> int:
        """Return the exit code; all that was logged is in `events` then."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        with contextlib.suppress(AssertionError, queue.Empty):
            self.wait_for("nothing has this name, so all lines are read")
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def start(
    data_dir: Path,
    *flags: str,
    port: int = 0,
    module: str = "stepwell_server",
    **environment: str,
) -> ServerProcess:
    """Start `stepwell serve`; it may refuse to, so use `wait_for("ready")` or `wait()`.

    Args:
        data_dir: Where it keeps its data.
        flags: Of `stepwell serve`.
        port: Where it listens; 0 takes a free one.
        module: What is run: the server, or one with a bug on purpose.
        environment: Beside our own.
    """
    command = [sys.executable, "-m", module, "serve", "--log-format", "json"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir), "--port", str(port), *flags],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    return ServerProcess(process)


@contextlib.contextmanager
def served(data_dir: Path, *flags: str, **environment: str) -> Iterator[ServerProcess]:
    """Run `stepwell serve` in a process of its own; give it when it is ready."""
    server = start(data_dir, *flags, **environment)
    try:
        server.url = server.wait_for("ready")["address"]
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
        else:
            server.wait()


@dataclass
class ServerThread:
    """A server in this process.

    Attributes:
        url: Where it listens.
        application: What it serves; look, do not touch.
        sockets: On which it listens; connections inherit their options.
    """

    url: str
    application: Any
    sockets: list[Any]


@contextlib.contextmanager
def hosted_aside(data_dir: Path, **settings: Any) -> Iterator[ServerThread]:
    """Run a server as `hosted` does; its log is not where a command's output is looked at."""
    import structlog

    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))
    try:
        with hosted(data_dir, **settings) as server:
            yield server
    finally:
        structlog.configure(**before)


@contextlib.contextmanager
def hosted(data_dir: Path, *, loop: str = "uvloop", **settings: Any) -> Iterator[ServerThread]:
    """Run the same server in a thread of this process; give it when it is ready.

    Args:
        data_dir: Where it keeps its data.
        loop: "uvloop" or "asyncio".
        settings: Of `stepwell_server.settings.Settings`.
    """
    from stepwell_server.serve import new_server, open_data
    from stepwell_server.settings import Settings

    chosen = Settings.load(None, **{"port": 0, "data_dir": data_dir, **settings})
    data = open_data(chosen)
    server = new_server(chosen, data, loop)
    begun, failures = threading.Event(), []
    startup = server.startup

    async def announced(sockets: Any = None) -> None:
        await startup(sockets)
        begun.set()

    server.startup = announced  # type: ignore[method-assign]

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            failures.append(error)
        finally:
            data.release()
            begun.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    try:
        assert begun.wait(DEADLINE_S), "the server did not start"
        if failures:
            raise failures[0]
        sockets = [sock for listener in server.servers for sock in listener.sockets]
        yield ServerThread(server.address, server._application, sockets)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the server did not stop"


def http(url: str, token: str | None = None, **options: Any) -> httpx.Client:
    """Return a plain HTTP client that knows nothing of Stepwell."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(
        base_url=url, headers=headers, timeout=DEADLINE_S, trust_env=False, **options
    )
