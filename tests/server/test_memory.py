"""How much memory there is, read from files as Linux has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from stepwell_server import memory

GIB = 1 << 30


@pytest.fixture
def root(tmp_path) -> Path:
    """A machine with 8 GiB, 5 of them available, and no control groups."""
    write(tmp_path, "proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable:    5242880 kB\n")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    """Write a file and the folders around it."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_without_control_groups_it_is_the_machines(root):
    """All of it may be used, and what is free may be taken."""
    assert memory.limit(root) == memory.Limit(8 * GIB, "this machine")
    assert memory.available_bytes(root) == 5 * GIB


@pytest.mark.parametrize("group", ["/", "/system.slice/stepwell.service"])
def test_a_group_of_version_2_limits_it(root, group):
    """Its own limit, also as a container sees it, in the place of the root."""
    folder = f"sys/fs/cgroup{group}".rstrip("/")
    write(root, "proc/self/cgroup", f"0::{group}\n")
    write(root, f"{folder}/memory.max", f"{2 * GIB}\n")
    write(root, f"{folder}/memory.current", f"{GIB // 2}\n")

    assert memory.limit(root) == memory.Limit(2 * GIB, "this control group")
    assert memory.available_bytes(root) == 2 * GIB - GIB // 2


def test_the_tightest_of_the_groups_around_counts(root):
    """A group without a limit of its own has that of its parent."""
    write(root, "proc/self/cgroup", "0::/a/b\n")
    write(root, "sys/fs/cgroup/a/b/memory.max", "max\n")
    write(root, "sys/fs/cgroup/a/b/memory.current", "0\n")
    write(root, "sys/fs/cgroup/a/memory.max", f"{GIB}\n")
    write(root, "sys/fs/cgroup/a/memory.current", "0\n")

    assert memory.limit(root).nbytes == memory.available_bytes(root) == GIB


def test_a_group_of_version_1_limits_it_and_its_largest_number_does_not(root):
    """Version 1 has no word for no limit."""
    write(root, "proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n0::/\n")
    write(root, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", f"{3 * GIB}\n")
    write(root, "sys/fs/cgroup/memory/x/memory.usage_in_bytes", f"{GIB}\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{GIB}\n")

    assert memory.limit(root) == memory.Limit(3 * GIB, "this control group")
    assert memory.available_bytes(root) == 2 * GIB


def test_this_machine_has_memory():
    """The real files are read."""
    assert memory.limit().nbytes >= memory.available_bytes() > 0
