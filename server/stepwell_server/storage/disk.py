"""Plain functions that touch the disk, safe against power loss where they say so."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from stepwell_core.errors import DataFolderInvalid

TEMPORARY = ".tmp-"
TRASH = ".trash-"


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    _fsync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """Return a new name beside `path`; `remove_leftovers` knows what it means."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


def write_durably(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace the file by `content`, whole or not at all, also across power loss.

    Args:
        path: Of the file.
        content: All of it.
        mode: Permissions, before the umask takes from them.
    """
    temporary = temporary_beside(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well, and vanishes otherwise.

    The block fsyncs the files that it writes. An existing `path` is never replaced.
    """
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        rename_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def rename_folder(path: Path, new: Path) -> None:
    """Give a folder its new name, durably.

    Raises:
        FileExistsError: There is something of that name; `os.rename` would replace an empty folder.
    """
    if new.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    os.rename(path, new)
    sync_folder(new.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder: at once out of sight, durably, then its content."""
    trash = path.with_name(f"{TRASH}{uuid.uuid4().hex}")
    os.rename(path, trash)
    sync_folder(path.parent)
    shutil.rmtree(trash)


def remove_leftovers(folder: Path) -> None:
    """Remove what an earlier process left half-written or half-removed."""
    for path in folder.iterdir():
        if path.name.startswith((TEMPORARY, TRASH)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


class FolderLock:
    """Keeps a second server out of a data folder; the kernel lets go when the process ends.

    Args:
        folder: The data folder.
        name: Of the file in it that is locked.

    Raises:
        DataFolderInvalid: Another process holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / name
        try:
            self._file = open(path, "a+")  # noqa: SIM115  held open for the life of the server
        except OSError as error:
            raise DataFolderInvalid(
                f"The data folder {folder} cannot be written ({error.strerror}); choose another "
                "with --data-dir"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read(32).strip()
            self._file.close()
            raise DataFolderInvalid(
                f"The data folder {folder} is in use by another server (process "
                f"{owner or 'unknown'}); stop it or choose another folder with --data-dir"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let another server in."""
        self._file.close()
