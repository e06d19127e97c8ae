"""Every system call of a checkpoint fails, or is the last one of its process: all or nothing.

strace interferes with the n-th call of a kind, for each kind and each n that there is.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from stepwell_server.storage.folders import ModelFolder

from tests.faults.checkpoint_program import NAME, REFUSED, UNSETTLED, write
from tests.requirements import require_strace
from tests.server.storage.snapshots import assert_holds, snapshot

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]

CALLS = {
    "openat",
    "pwrite64",
    "ftruncate",
    "fsync",
    "close",
    "mkdir",
    "rename",
    "unlinkat",
    "rmdir",
    "preadv",
}
"""The kinds of calls that a checkpoint makes and that can fail; the first test holds this list."""

OTHER_NAMES = {"preadv2": "preadv", "unlink": "unlinkat", "renameat2": "rename", "mkdirat": "mkdir"}
"""What another C library, or another Python, calls for the same."""

TAKES_ROOM = {"openat", "pwrite64", "pwritev", "fsync", "mkdir", "rename", "fallocate"}
"""The calls that a full disk refuses."""

WATCHED = [
    *sorted(CALLS),
    *("write", "writev", "pwritev", "pwritev2", "fdatasync", "sync_file_range", "fallocate"),
    *("creat", "open", "openat2", "renameat", "renameat2", "link", "linkat", "symlink"),
    *("unlink", "mkdirat", "truncate", "read", "pread64", "preadv2", "sendfile", "copy_file_range"),
]
"""All calls that could be in that list."""

NOT_OURS = {"read", "write"}
"""The line that the child waits for; what Python prints of an error."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: See `checkpoint_program`.
        is_injected: Whether strace had a call to interfere with.
        calls: What strace saw.
    """

    code: int
    is_injected: bool
    calls: list[str]


class Program:
    """The program, and strace on its children."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.checkpoint_program"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def run(self, folder: Path, *injection: str) -> Ended:
        """Write a checkpoint under strace."""
        child = int(self._ask(str(folder)))
        traced = ",".join(WATCHED)
        command = ["strace", "-e", f"trace={traced}", *injection, "-o", str(self._log)]
        with subprocess.Popen(
            [*command, "-p", str(child)], stderr=subprocess.PIPE, text=True
        ) as strace:
            assert strace.stderr is not None
            attached = strace.stderr.readline()
            assert "attached" in attached, attached
            code = int(self._ask("go"))
        lines = self._log.read_text().splitlines()
        # A call that is never returned from has no mark.
        is_injected = any("(INJECTED)" in line for line in lines) or code == -signal.SIGKILL
        return Ended(code, is_injected, lines)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Return the program."""
    require_strace()
    program = Program(tmp_path_factory.mktemp("strace") / "log")
    yield program
    program.close()


@pytest.fixture
def prepared(tmp_path):
    """Return the folder of a model with one checkpoint, of version 1."""
    folder = tmp_path / NAME
    ModelFolder(folder, NAME).create()
    write(folder, version=1)
    return folder


def check_all_or_nothing(folder: Path, ended: Ended) -> None:
    """Check what is there after a restart, and that another checkpoint can be written."""
    model = ModelFolder(folder, NAME)
    manifest, state = model.archive.newest()
    version = manifest.counters.version
    allowed = {0: {2}, REFUSED: {1}, UNSETTLED: {1, 2}, -signal.SIGKILL: {1, 2}}
    assert version in allowed[ended.code], ended
    assert_holds(state, snapshot(version, seed=version))
    model.prepare()  # as a start does
    left = {path.name for path in model.checkpoints_path.iterdir()}
    assert left <= {*model.archive.ids(), "pins.json"}
    write(folder, version=3)
    assert model.archive.newest()[0].counters.version == 3


def test_a_checkpoint_makes_the_calls_that_are_made_to_fail(program, prepared):
    """A new kind of call in the code belongs in the list."""
    ended = program.run(prepared)

    seen = {line.partition("(")[0] for line in ended.calls if "(" in line} - NOT_OURS
    assert ended.code == 0, ended
    assert {OTHER_NAMES.get(call, call) for call in seen} == CALLS


@pytest.mark.parametrize(
    ("call", "effect"),
    [
        *itertools.product(sorted(CALLS), ["error=EIO", "signal=KILL"]),
        *itertools.product(sorted(CALLS & TAKES_ROOM), ["error=ENOSPC"]),
    ],
)
def test_a_checkpoint_is_there_whole_or_not_at_all(call, effect, program, prepared, tmp_path):
    """Whichever call of the kind fails, or is never made, and all after it."""
    names = ",".join([call, *(other for other, name in OTHER_NAMES.items() if name == call)])
    count = 0
    for n in itertools.count(1):
        folder = tmp_path / "tried" / NAME
        shutil.copytree(prepared, folder)

        ended = program.run(folder, "-e", f"inject={names}:{effect}:when={n}")

        check_all_or_nothing(folder, ended)
        shutil.rmtree(folder)
        if not ended.is_injected:
            break
        count += 1
    assert count > 0
