"""How much memory this process may use: the machine's, or what its control groups leave of it.

Sources: cgroups(7); `memory.max` and `memory.current` of version 2, `memory.limit_in_bytes` and
`memory.usage_in_bytes` of version 1. A limit of any group around ours counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

_FILES = {
    2: ("memory.max", "memory.current"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


@dataclass(frozen=True)
class Limit:
    """A number of bytes and what it is: "this machine" or "this control group"."""

    nbytes: int
    whose: str


def limit(root: Path = ROOT) -> Limit:
    """Return how much memory this process may use, in bytes, be it free or not."""
    machine = Limit(_meminfo(root, "MemTotal"), "this machine")
    groups = [Limit(most, "this control group") for most, _ in _groups(root)]
    return min([machine, *groups], key=lambda limit: limit.nbytes)


def available_bytes(root: Path = ROOT) -> int:
    """Return how much memory this process may still take, in bytes."""
    left = [most - used for most, used in _groups(root)]
    return min([_meminfo(root, "MemAvailable"), *left])


def _meminfo(root: Path, name: str) -> int:
    fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of every group that we are in and that has a limit."""
    for folder, version in _folders(root):
        try:
            most, used = ((folder / name).read_text().strip() for name in _FILES[version])
        except OSError:
            continue  # the root group has no such files, and a container does not see all groups
        if most != "max":
            yield int(most), int(used)


def _folders(root: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders of our groups and of those around them, innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            folder = mount / path.lstrip("/")
            while folder != mount and mount in folder.parents:
                yield folder, 1 if controllers else 2
                folder = folder.parent
            yield mount, 1 if controllers else 2
