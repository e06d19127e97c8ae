"""Our server as a user starts it: `stepwell serve`, a process of its own."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        url: Where it listens.
        pid: Of its process.
    """

    url: str
    pid: int


@contextlib.contextmanager
def serving(*flags: str, module: str = "stepwell_server") -> Iterator[Server]:
    """Run a server with a data folder that is thrown away; give it when it is ready.

    It keeps nothing but checkpoints unless `--durability` says otherwise, as those that it is
    compared with.

    Args:
        flags: Of `stepwell serve`.
        module: What is run: the server, or one that is changed on purpose.
    """
    if "--durability" not in flags:
        flags = ("--durability", "memory", *flags)
    with tempfile.TemporaryDirectory(prefix="stepwell-bench-") as folder:
        process, url = start(Path(folder), *flags, module=module)
        try:
            yield Server(url, process.pid)
        finally:
            process.kill()  # a last checkpoint would be written for nobody
            process.wait()


def start(
    data_dir: Path, *flags: str, cache: Path | None = None, module: str = "stepwell_server"
) -> tuple[subprocess.Popen[str], str]:
    """Start a server and return it with its address when it is ready.

    Args:
        data_dir: Where it keeps its data.
        flags: Of `stepwell serve`.
        cache: Of compiled kernels; default: the user's.
        module: What is run.

    Raises:
        RuntimeError: It ended.
    """
    command = [sys.executable, "-m", module, "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir), "--log-format", "json", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ({} if cache is None else {"STEPWELL_CACHE_DIR": str(cache)}),
    )
    assert process.stderr is not None
    said = collections.deque[str](maxlen=20)
    for line in process.stderr:
        said.append(line)
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("event") == "ready":
            # A pipe that nobody reads would hold the server up once it is full.
            threading.Thread(target=_read, args=(process.stderr, said), daemon=True).start()
            return process, str(entry["address"])
    process.stderr.close()
    raise RuntimeError(f"the server ended with status {process.wait()}: {''.join(said)}")


def _read(stream: TextIO, said: collections.deque[str]) -> None:
    with stream:
        said.extend(stream)
