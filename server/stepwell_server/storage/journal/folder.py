"""The folder of one model's journal: which files are in it, and what is done to all of them.

<serial>-<first number>.segment   in the order of their serials
.recycled                         a file whose blocks the next segment uses
"""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from stepwell_server.storage import disk

RECYCLED = ".recycled"

MAX_BYTES = 8 << 30
LEAST_MAX_BYTES = 64 << 20

_NAME = re.compile(r"^(\d{8,})-(\d+)\.segment$")


@dataclass(frozen=True, order=True)
class SegmentName:
    """The name of a segment.

    Attributes:
        serial: Grows by one with each segment.
        first_number: Of its first record.
    """

    serial: int
    first_number: int

    def __str__(self) -> str:
        return f"{self.serial:08d}-{self.first_number}.segment"


def segments(folder: Path) -> list[SegmentName]:
    """Return the names of all segments, oldest first."""
    try:
        names = [_NAME.match(path.name) for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(SegmentName(int(name[1]), int(name[2])) for name in names if name)


def sync_all(folder: Path) -> None:
    """Wait until all that is in the segments is on the disk."""
    for name in segments(folder):
        disk.sync_file(folder / str(name))
    if folder.exists():
        disk.sync_folder(folder)


def remove_all(folder: Path) -> None:
    """Remove all segments, durably."""
    names = [str(name) for name in segments(folder)]
    for name in names:
        disk.system.unlink(folder / name)
    with contextlib.suppress(FileNotFoundError):
        disk.system.unlink(folder / RECYCLED)
    if names:
        disk.sync_folder(folder)


def default_max_bytes(folder: Path) -> int:
    """Return how large a journal may become before a checkpoint cuts it: the disk's share."""
    quarter = shutil.disk_usage(folder).free // 4
    return max(LEAST_MAX_BYTES, min(MAX_BYTES, quarter))


def boot_id() -> str:
    """Return what names the present run of the kernel; another one has lost the page cache."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
