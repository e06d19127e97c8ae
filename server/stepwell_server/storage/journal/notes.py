"""What stands beside a journal's segments: which is the newest, and under which the disk failed.

<model>/newest-segment                  the name of the newest segment, or of one before it
<model>/journal/<segment>.failed        the disk failed while that segment was written
/dev/shm/stepwell-<salt>.failed         the same, by the segment's salt; not on a disk

The first shows that segments were taken away, the second that records may be missing although the
machine still runs: after a failed sync the kernel forgets what it could not write. Such a disk may
not take the mark either, or forget it; so there is one in memory too, which the machine's next
start removes, when it is not needed any more.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from stepwell_core.errors import JournalInvalid

from stepwell_server.storage import disk
from stepwell_server.storage.journal.format import parse_name

NEWEST = "newest-segment"
MAX_NOTE_BYTES = 64

MEMORY = Path("/dev/shm")
"""Where files last as long as the machine runs, whatever its disks do."""


def note_newest(segment: Path) -> None:
    """Note, durably, that a segment is there; its name is durable already.

    For want of room the note that is there stays: it is true too.

    Raises:
        OSError: The disk failed.
    """
    try:
        disk.write_durably(segment.parent.with_name(NEWEST), segment.name.encode())
    except OSError as error:
        if error.errno not in disk.NO_ROOM:
            raise


def forget_newest(folder: Path) -> None:
    """Forget it, durably: the journal is about to be removed."""
    path = folder.with_name(NEWEST)
    if path.exists():
        disk.remove_file(path)


def noted_newest(folder: Path) -> str | None:
    """Return the name that `note_newest` noted last; None if there is no such note.

    Args:
        folder: Of the journal; there may be none.

    Raises:
        JournalInvalid: The note cannot be read, or is none.
    """
    path = folder.with_name(NEWEST)
    try:
        with open(path, "rb") as file:
            name = file.read(MAX_NOTE_BYTES).decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalInvalid(f"{path}: it cannot be read ({error.strerror})") from None
    if parse_name(name) is None:
        raise JournalInvalid(
            f"{path}: it has the name of a segment. Received: {name!r}. If the journal is whole, "
            "remove this file"
        )
    return name


def mark_failed(segment: Path, salt: int | None = None) -> None:
    """Mark that the disk failed under a segment, as well as such a disk lets us.

    Args:
        segment: Its file.
        salt: Of it; None where it is not known, and then there is no mark in memory.
    """
    with contextlib.suppress(OSError):
        descriptor = disk.system.open(_mark_of(segment), os.O_WRONLY | os.O_CREAT)
        disk.system.close(descriptor)
        disk.sync_folder(segment.parent)
    if salt is not None:
        with contextlib.suppress(OSError):  # some systems, and containers, have no such place
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(_mark_in_memory(salt), flags, 0o600))


def has_failed(segment: Path, salt: int) -> bool:
    """Return whether `mark_failed` marked a segment."""
    return _mark_of(segment).exists() or _mark_in_memory(salt).exists()


def unmark(segment: Path) -> None:
    """Remove the mark of a segment that is not there any more; the folder is synced by others."""
    if _mark_of(segment).exists():
        disk.system.unlink(_mark_of(segment))


def _mark_of(segment: Path) -> Path:
    return segment.with_suffix(".failed")


def _mark_in_memory(salt: int) -> Path:
    return MEMORY / f"stepwell-{salt:016x}.failed"
