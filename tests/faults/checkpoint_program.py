"""Writes checkpoints with the server's own code, in a process for each, for strace to interfere.

    python -m tests.faults.checkpoint_program

On each line of standard input is the folder of a model. A child is forked for it, whose number is
printed; it waits for another line, then writes a checkpoint, and lets go of the one before.
How it ended is printed then: 0 if all is well, 3 if it was refused with a known error, 4 if that
said that the checkpoint may be there, minus the signal if it was killed. So nothing is imported
twice, and strace sees the checkpoint alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path

from stepwell_core.errors import StepwellError
from stepwell_server.storage.folders import ModelFolder
from stepwell_server.storage.stores import Unsettled

from tests.server.storage.snapshots import snapshot

NAME = "m"
REFUSED = 3
UNSETTLED = 4


def write(folder: Path, version: int) -> None:
    """Write a checkpoint as the server does, and let go of old ones."""
    archive = ModelFolder(folder, NAME).archive
    archive.write(snapshot(version, seed=version), journal_number=0)
    with contextlib.suppress(OSError, StepwellError):  # the new one is whole all the same
        archive.retain(1)


def main() -> None:
    """Fork for each line until there are no more."""
    while folder := _line():
        child = os.fork()
        if child == 0:
            _line()
            _end_with(Path(folder))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _line() -> str:
    """Read a line and nothing behind it, which may be another process's."""
    read = b""
    while not read.endswith(b"\n") and (byte := os.read(0, 1)):
        read += byte
    return read.decode().strip()


def _end_with(folder: Path) -> None:
    try:
        write(folder, version=2)
    except Unsettled:
        os._exit(UNSETTLED)
    except (OSError, StepwellError):
        os._exit(REFUSED)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
