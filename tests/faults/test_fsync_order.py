"""A trace of a real server: what is acknowledged under `always` was synced before."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import stepwell

from tests.requirements import require_strace
from tests.servers import DEADLINE_S, served

pytestmark = pytest.mark.full

WRITES = "pwrite64,pwritev,pwritev2,write,writev"
SENDS = "sendto,sendmsg"
SYNCS = "fdatasync,fsync"


@contextlib.contextmanager
def traced(process_id: int, log: Path, *options: str) -> Iterator[None]:
    """Trace a process and all its threads inside the block."""
    command = ["strace", "-f", "-y", "-s", "80", *options, "-o", str(log), "-p", str(process_id)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        line = strace.stderr.readline()
        assert "attached" in line, line
        try:
            yield
        finally:
            strace.terminate()
            strace.wait(DEADLINE_S)


def first(lines: list[str], pattern: str, start: int = 0) -> int:
    """Return the place of the first line that matches."""
    for place in range(start, len(lines)):
        if re.search(pattern, lines[place]):
            return place
    raise AssertionError(f"nothing like {pattern!r} in:\n" + "\n".join(lines[start:]))


def end_of(lines: list[str], place: int) -> int:
    """Return where the call that a line begins has returned."""
    if "<unfinished ...>" not in lines[place]:
        return place
    thread, call = re.match(r"(\d+) +(\w+)", lines[place]).groups()
    return first(lines, rf"^{thread} +<\.\.\. {call} resumed>", place)


@pytest.mark.parametrize("rows", [1, 100_000])
def test_the_journal_is_synced_between_its_write_and_the_answer(rows, tmp_path):
    """For a record that is small, and for one that goes past the page cache."""
    require_strace()
    log = tmp_path / "trace"
    gradient = {"a": np.ones((rows, 4), np.float32)}
    with (
        served(tmp_path / "data", "--durability", "always") as server,
        stepwell.Client(server.url, transport="http") as client,
    ):
        model = client.create_model("m", gradient, optimizer=stepwell.SGD(1.0))
        worker = model.worker("w").open()
        worker.push(gradient)

        with traced(server.process.pid, log, "-e", f"trace={WRITES},{SENDS},{SYNCS}"):
            worker.push(gradient)

    lines = log.read_text().splitlines()
    written = [n for n, line in enumerate(lines) if re.search(r" pw\w+\(\d+<.*\.segment>", line)]
    answered = first(lines, r"<(TCP|socket).*HTTP/1\.1 200")
    before = [n for n in written if n < answered]
    assert before, lines
    synced = first(lines, r"(fdatasync|fsync)\(\d+<.*\.segment>", before[-1])
    assert end_of(lines, before[-1]) < synced
    assert end_of(lines, synced) < answered


def test_a_failed_sync_is_never_acknowledged_and_the_model_is_only_read_from_then_on(tmp_path):
    """Not even when the next one would succeed; a restart tells what became of the push."""
    require_strace()
    gradient = {"a": np.ones((4,), np.float32)}
    patience = stepwell.Timeout(retry_s=0.5)
    with served(tmp_path / "data", "--durability", "always") as server:
        with stepwell.Client(server.url, transport="http", timeout=patience) as client:
            model = client.create_model("m", gradient, optimizer=stepwell.SGD(1.0))
            worker = model.worker("w").open()
            worker.push(gradient)

            injection = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1")
            with (
                traced(server.process.pid, tmp_path / "trace", *injection),
                pytest.raises(stepwell.errors.ModelReadOnly),
            ):
                worker.push(gradient)
            with pytest.raises(stepwell.errors.ModelReadOnly):
                worker.push(gradient)
            seen = model.pull()
        server.kill()
    with (
        served(tmp_path / "data", "--durability", "always") as server,
        stepwell.Client(server.url) as client,
    ):
        after = client.model("m").pull()

    assert (seen.version, seen["a"][0]) == (1, 0.0)
    assert (after.version, after["a"][0]) in [(1, 0.0), (2, -1.0)]
