"""The machine: packages, memory, descriptors, the cache of kernels, the clock."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata

from stepwell_core.errors import NoSharedMemory
from stepwell_core.kernels.cache import cache_folder

from stepwell_server import __version__, memory
from stepwell_server.doctor.finding import Finding
from stepwell_server.settings import Settings
from stepwell_server.shared_memory import Region

PACKAGES = ("numpy", "numba", "fastapi", "uvicorn", "uvloop", "httptools", "pydantic", "msgpack")
"""Whose versions a report of a bug should name."""

MEMORY_BYTES = 1 << 30

FILES = 1024
"""Descriptors: each worker has a connection or two."""

CLOCK_S = 5.0


def check_machine(settings: Settings) -> Iterator[Finding]:
    """Yield what is found of it."""
    yield from _packages()
    yield _shared_memory(settings)
    yield _memory()
    yield _files()
    yield _kernels()
    yield _clock(settings)


def _packages() -> Iterator[Finding]:
    """Yield the versions, and what of the packages is missing."""
    versions, missing = [f"stepwell {__version__}", f"Python {platform.python_version()}"], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("versions", "ok", ", ".join(versions))
    if missing:
        advice = 'pip install "stepwell[server]"'
        yield Finding("versions", "failed", f"not installed: {', '.join(missing)}", advice)


def _shared_memory(settings: Settings) -> Finding:
    check, path = "shared memory", settings.memory_path
    if path is None:
        return Finding(check, "ok", "switched off")
    try:
        Region(1 << 20, is_writable_elsewhere=False)
    except NoSharedMemory as error:
        advice = "workers on this host will send tensors instead; use Linux 5.1 or newer"
        return Finding(check, "warning", error.message, advice)
    return Finding(check, "ok", f"sealed memory works; workers on this host come to {path}")


def _memory() -> Finding:
    available, limit = memory.available_bytes(), memory.limit()
    found = f"{available / 1e9:.1f} of {limit.nbytes / 1e9:.1f} GB of {limit.whose} are available"
    if available < MEMORY_BYTES:
        advice = "a model takes two buffers and its slots; give the server more"
        return Finding("memory", "warning", found, advice)
    return Finding("memory", "ok", found)


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        return Finding("open files", "warning", f"{soft} at most", f"ulimit -n {most}")
    return Finding("open files", "ok", f"{soft} at most")


def _kernels() -> Finding:
    folder = cache_folder()
    is_writable = False
    with contextlib.suppress(OSError):
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        is_writable = os.access(existing, os.W_OK | os.X_OK)
    if is_writable:
        return Finding("kernels", "ok", f"compiled ones are kept in {folder}")
    advice = "set STEPWELL_CACHE_DIR to a folder that can be written, or each start compiles again"
    return Finding("kernels", "warning", f"{folder} cannot be written", advice)


def _clock(settings: Settings) -> Finding:
    """Compare this machine's clock with its disk's, and with what was written before."""
    now = time.time()
    path = settings.data_dir
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=path, buffering=0) as file:
        file.write(b"now")
        skew_s = os.fstat(file.fileno()).st_mtime - time.time()
        if abs(skew_s) > CLOCK_S:
            found = f"the disk's clock is {skew_s:+.0f} s from this machine's"
            return Finding("clock", "warning", found, "let both follow the same time server")
    newest = now
    with contextlib.suppress(OSError):  # one may go meanwhile
        newest = max((p.stat().st_mtime for p in path.glob("*/checkpoints/*")), default=now)
    if newest > now + CLOCK_S:
        found = f"a checkpoint was written {newest - now:.0f} s in the future"
        advice = "the clock was set back: times in lists and logs are wrong, and nothing else"
        return Finding("clock", "warning", found, advice)
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))
