"""How much memory a process has, as Linux says."""

from __future__ import annotations

from pathlib import Path


def is_known() -> bool:
    """Return whether this system says it."""
    return Path("/proc/self/status").exists()


def now(pid: int) -> int:
    """Return the bytes that are resident and no file's: the process's own and those it shares."""
    return _kib(f"{pid}/status", "RssAnon", "RssShmem") << 10


def shared(pid: int) -> int:
    """Return the bytes of it that other processes may have too and that are no file's."""
    return _kib(f"{pid}/status", "RssShmem") << 10


def peak(pid: int) -> int:
    """Return the most that was resident since `forget_peak`, in bytes, mapped files included."""
    return _kib(f"{pid}/status", "VmHWM") << 10


def forget_peak(pid: int) -> None:
    """Count the peak from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def available() -> int:
    """Return the bytes that programs may still take on this machine."""
    return _kib("meminfo", "MemAvailable") << 10


def _kib(file: str, *names: str) -> int:
    lines = (Path("/proc") / file).read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) for name in names)
