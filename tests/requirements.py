"""What a test needs from the machine: without it the test is skipped, or fails if that is demanded.

`make test` skips, and says why. `make test-full` installs what can be installed, and demands the
rest: `STEPWELL_REQUIRE=strace,tmpfs,...`.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

VARIABLE = "STEPWELL_REQUIRE"


def require(name: str, missing: str) -> None:
    """Skip the test if something is missing, or fail it if that is demanded.

    Args:
        name: Of what is needed, as the variable has it.
        missing: Why it is not there; empty if it is.
    """
    if not missing:
        return
    if name in os.environ.get(VARIABLE, "").split(","):
        pytest.fail(f"{VARIABLE} demands {name}, and {missing}")
    pytest.skip(missing, allow_module_level=True)


def require_package(name: str) -> ModuleType:
    """Need a Python package, as the optional ones of the client's integrations; returns it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        require(name, f"the Python package {error.name} is not installed")
        raise


def require_program(name: str, package: str) -> str:
    """Need a program of the system; returns its path."""
    path = shutil.which(name)
    require(name, "" if path else f"{name} is not installed (Debian: apt-get install {package})")
    return str(path)


def require_strace() -> None:
    """Need strace, and the right to trace a process."""
    require("strace", _strace_is_missing())


@cache
def _strace_is_missing() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt-get install strace)"
    command = ["strace", "-e", "inject=fsync:error=EIO", "-o", "/dev/null", "true"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return "strace may not trace a process here"
    return ""


def require_tmpfs(folder: Path, nbytes: int) -> None:
    """Mount a small file system in memory on a folder; who asks unmounts it."""
    if os.geteuid() != 0:
        require("tmpfs", "only root can mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "stepwell-test", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        require("tmpfs", f"a small file system cannot be mounted here: {done.stderr.strip()}")
