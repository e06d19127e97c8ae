"""The files of a journal's folder, and what holds for the machine they are on."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from stepwell_core.errors import JournalInvalid

from stepwell_server.storage import disk
from stepwell_server.storage.journal.format import parse_name

RECYCLED = ".recycled"
"""The name of the one old file that will become a segment again; nobody reads it."""

MOST_JOURNAL_BYTES = 8 << 30


@dataclass(frozen=True)
class SegmentFile:
    """A segment by its name.

    Attributes:
        path: Of the file.
        serial: Later segments have larger ones.
        first_number: Of its first record.
        nbytes: The file's size.
    """

    path: Path
    serial: int
    first_number: int
    nbytes: int


def segments(folder: Path) -> list[SegmentFile]:
    """Return all segments, oldest first; none if there is no such folder.

    Raises:
        JournalInvalid: What bears a segment's name is not a file, or two have the same serial
            number.
    """
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    found: dict[int, SegmentFile] = {}
    for path in paths:
        parsed = parse_name(path.name)
        if parsed is None:
            continue
        if path.is_symlink() or not path.is_file():
            raise JournalInvalid(f"{path}: a segment is a file; remove what has its name")
        serial, first_number = parsed
        if serial in found:
            raise JournalInvalid(
                f"{path}: a serial number is one segment's alone. Received: also "
                f"{found[serial].path.name}; move the one away that does not belong here"
            )
        found[serial] = SegmentFile(path, serial, first_number, path.stat().st_size)
    return [found[serial] for serial in sorted(found)]


def sync_all(folder: Path) -> None:
    """Wait until every segment is on the disk, and forget what memory has of it.

    Called before `read`, it makes sure that what is read is what the disk has: after a failed sync
    the kernel may show bytes that never got there. Nothing is changed.
    """
    found = segments(folder)
    for segment in found:
        descriptor = disk.system.open(segment.path, os.O_RDONLY)
        try:
            disk.system.sync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            disk.system.close(descriptor)
    if found:
        disk.sync_folder(folder)


def remove_all(folder: Path) -> None:
    """Remove the journal with all that is in it; nothing happens if there is none."""
    if folder.exists():
        disk.remove_folder(folder)


def default_max_bytes(path: Path) -> int:
    """Return how large a journal may grow by default: 8 GiB, or a quarter of the free disk.

    Args:
        path: Of a folder on that disk that exists.
    """
    return max(1, min(MOST_JOURNAL_BYTES, shutil.disk_usage(path).free // 4))


def boot_id() -> str:
    """Return which start of the kernel this is: as long as it is the same, its page cache was kept.

    Where the kernel does not say, it is another one at each call, so that nothing is taken for
    proven.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{os.urandom(16).hex()}"
