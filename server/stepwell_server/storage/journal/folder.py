"""The files of a journal's folder, and what holds for the machine they are on."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from stepwell_core.errors import JournalInvalid

from stepwell_server.storage import disk
from stepwell_server.storage.journal import notes
from stepwell_server.storage.journal.format import parse_name

RECYCLED = ".recycled"
"""The name of the one old file that will become a segment again; nobody reads it."""

MOST_JOURNAL_BYTES = 8 << 30
LEAST_JOURNAL_BYTES = 16 << 20


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
    the kernel may show bytes that never got there. Nothing is changed but that a segment is marked
    under which the disk fails: the next sync of it would succeed, without what was lost.

    Raises:
        JournalInvalid: See `segments`.
        OSError: The disk fails.
    """
    found = segments(folder)
    for segment in found:
        _sync_and_forget(segment.path)
    if found:
        disk.sync_folder(folder)


def _sync_and_forget(segment: Path) -> None:
    descriptor = disk.system.open(segment, os.O_RDONLY)
    try:
        disk.system.sync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        notes.mark_failed(segment)
        raise
    finally:
        disk.system.close(descriptor)


def check_newest(folder: Path) -> None:
    """Make sure that the newest segment was not taken away.

    Args:
        folder: Of the journal; there may be none.

    Raises:
        JournalInvalid: The one that was noted is not there, nor one after it.
    """
    name = notes.noted_newest(folder)
    parsed = None if name is None else parse_name(name)
    if name is None or parsed is None:
        return  # there never was a journal, or it was given up
    found = segments(folder)
    if not found or found[-1].serial < parsed[0]:
        raise JournalInvalid(
            f"{folder / name}: the journal's newest segment is not there; what was answered since "
            "the last checkpoint may be lost. Nothing was changed. Put the file back; or, to go on "
            f"without it from what there is, remove {folder.with_name(notes.NEWEST)}"
        )


def remove_all(folder: Path) -> None:
    """Remove the journal with all that is in it; nothing happens if there is none."""
    notes.forget_newest(folder)
    if folder.exists():
        disk.remove_folder(folder)


def default_max_bytes(path: Path, nbytes: int = 0) -> int:
    """Return how large a journal may grow by default: 8 GiB, or a quarter of the free disk.

    But 16 MiB at least: on a disk that is nearly full it is the disk that refuses, and goes on when
    there is room again.

    Args:
        path: Of a folder on that disk that exists.
        nbytes: What the journal has already, which is not free.
    """
    quarter = (shutil.disk_usage(path).free + nbytes) // 4
    return max(LEAST_JOURNAL_BYTES, min(MOST_JOURNAL_BYTES, quarter))


def boot_id() -> str:
    """Return which start of the kernel this is: as long as it is the same, its page cache was kept.

    Where the kernel does not say, it is another one at each call, so that nothing is taken for
    proven.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{os.urandom(16).hex()}"
