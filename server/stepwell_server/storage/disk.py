"""Plain functions that touch the disk, safe against power loss where they say so.

Every system call that changes something on the disk goes through `system`, a `System`. So a test
can put in its place a disk that forgets what was not synced, or one that fails.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from stepwell_core.errors import DataFolderInvalid, DiskFull

BLOCK_BYTES = 4096
"""Of what goes past the page cache."""

WINDOW_BYTES = 4 << 20
"""So much goes past it at a time."""

DIRECT_REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP}
"""What a file system answers that has no `O_DIRECT`: some at opening, some at the first byte."""

TEMPORARY = ".tmp-"
TRASH = ".trash-"


class System:
    """The system calls that change the disk, as they are in `os`. Thread-safe."""

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        """Open a file, or make one; returns its descriptor."""
        return os.open(path, flags, mode)

    def pwrite(self, descriptor: int, content: bytes | memoryview, offset: int) -> int:
        """Write at an offset; returns how many bytes were."""
        return os.pwrite(descriptor, content, offset)

    def pwritev(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        """Write parts one behind the other at an offset; returns how many bytes were."""
        return os.pwritev(descriptor, parts, offset)

    def allocate(self, descriptor: int, offset: int, nbytes: int) -> None:
        """Make sure that a part of a file has room on the disk; what is new reads as zeros."""
        os.posix_fallocate(descriptor, offset, nbytes)

    def truncate(self, descriptor: int, nbytes: int) -> None:
        """Cut a file, or extend it by zeros."""
        os.ftruncate(descriptor, nbytes)

    def sync(self, descriptor: int) -> None:
        """Wait until a file's content, or a folder's entries, are on the disk."""
        os.fsync(descriptor)

    def sync_content(self, descriptor: int) -> None:
        """Wait until a file's content and size are on the disk."""
        os.fdatasync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        os.close(descriptor)

    def give(self, path: Path, owner: tuple[int, int]) -> None:
        """Give a file to a user and a group."""
        os.chown(path, *owner)

    def rename(self, path: Path, new: Path) -> None:
        """Give a file or folder a new name; a file of that name is replaced."""
        os.rename(path, new)

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        os.unlink(path)

    def make_folder(self, path: Path) -> None:
        """Make a folder."""
        os.mkdir(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder with all that is in it."""
        shutil.rmtree(path)


system = System()


NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
"""The errors of a disk that is full."""


@contextlib.contextmanager
def needs_room(what: str) -> Iterator[None]:
    """Say in our words that the disk is full, if that is what a block fails of.

    Args:
        what: What there is no room for.

    Raises:
        DiskFull: The block left nothing behind.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DiskFull(
            f"The disk has no room for {what} ({error.strerror}); nothing changed. Make room, keep "
            "fewer checkpoints, or choose another disk with --data-dir"
        ) from None


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    _sync(path, os.O_RDONLY)


def sync_folder(path: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = system.open(path, flags)
    try:
        system.sync(descriptor)
    finally:
        system.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """Return a new name beside `path`; `remove_leftovers` knows what it means."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


def write_whole(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of `content` at an offset, in as many calls as it takes."""
    left = memoryview(content).cast("B")
    while left:
        written = system.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


class NewFile:
    """A file that is being written from its beginning to its end, and synced when it is closed.

    A context manager: the block that ends well has the bytes on the disk. Its name is not yet: that
    takes `sync_folder`.

    Args:
        path: Of the file; nothing of that name may exist.
        mode: Permissions, before the umask takes from them.
        is_large: Go past the page cache, whose fresh pages may cost more than the disk, and which
            has better things to keep.
    """

    def __init__(self, path: Path, mode: int = 0o666, *, is_large: bool = False) -> None:
        self.nbytes = 0
        self._path = path
        self._descriptor = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        self._filled = 0
        try:
            self._direct = open_direct(path, os.O_WRONLY) if is_large else None
            self._window = window() if is_large else memoryview(b"")
        except BaseException:
            system.close(self._descriptor)
            raise

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes; they are copied, or written, before this returns."""
        left = memoryview(content).cast("B")
        self.nbytes += left.nbytes
        if not self._window:
            write_whole(self._descriptor, left, self.nbytes - left.nbytes)
            return
        while left:
            count = min(left.nbytes, self._window.nbytes - self._filled)
            self._window[self._filled : self._filled + count] = left[:count]
            self._filled, left = self._filled + count, left[count:]
            if self._filled == self._window.nbytes:
                self._write_window(self.nbytes - left.nbytes - self._filled)

    def _write_window(self, offset: int) -> None:
        """Write what the window holds; the last time there may be zeros behind it."""
        extent = -(-self._filled // BLOCK_BYTES) * BLOCK_BYTES
        self._window[self._filled : extent] = bytes(extent - self._filled)
        if not self._is_written_past_the_cache(self._window[:extent], offset):
            write_whole(self._descriptor, self._window[:extent], offset)
        self._filled = 0

    def _is_written_past_the_cache(self, content: memoryview, offset: int) -> bool:
        if self._direct is None:
            return False
        try:
            write_whole(self._direct, content, offset)
        except OSError as error:
            if error.errno not in DIRECT_REFUSALS:
                raise
            system.close(self._direct)
            self._direct = None
        return self._direct is not None

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, error: object, *rest: object) -> None:
        try:
            if error is None:
                if self._filled:
                    self._write_window(self.nbytes - self._filled)
                    system.truncate(self._descriptor, self.nbytes)
                system.sync(self._descriptor)
        finally:
            try:
                if self._direct is not None:
                    system.close(self._direct)
            finally:
                system.close(self._descriptor)


def open_direct(path: Path, flags: int) -> int | None:
    """Open a file past the page cache; None where that cannot be, as in memory.

    What is read or written is of whole blocks then, in memory too; see `window`.
    """
    try:
        return system.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno not in DIRECT_REFUSALS:
            raise
        return None


def window() -> memoryview:
    """Return new memory that begins at a page, for bytes on their way past the page cache."""
    return memoryview(mmap.mmap(-1, WINDOW_BYTES))


def pieces_of(path: Path) -> Iterator[memoryview]:
    """Yield the bytes of a file in pieces, past the page cache; a piece is good until the next."""
    buffer, offset = window(), 0
    direct = open_direct(path, os.O_RDONLY)
    descriptor = direct if direct is not None else system.open(path, os.O_RDONLY)
    try:
        while True:
            try:
                count = os.preadv(descriptor, [buffer], offset)
            except OSError as error:
                if descriptor != direct or error.errno not in DIRECT_REFUSALS:
                    raise
                system.close(descriptor)
                direct, descriptor = None, -1
                descriptor = system.open(path, os.O_RDONLY)
                continue
            if not count:
                return
            yield buffer[:count]
            offset += count
    finally:
        if descriptor >= 0:
            system.close(descriptor)


def write_durably(
    path: Path, content: bytes, mode: int = 0o666, owner: tuple[int, int] | None = None
) -> None:
    """Replace the file by `content`, whole or not at all, also across power loss.

    Args:
        path: Of the file.
        content: All of it.
        mode: Permissions, before the umask takes from them.
        owner: User and group that it is given to; None leaves it this process's.
    """
    temporary = temporary_beside(path)
    try:
        with NewFile(temporary, mode) as file:
            file.write(content)
        if owner is not None:
            system.give(temporary, owner)
        system.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folders(path: Path) -> None:
    """Make a folder and what is missing above it, durably; it may be there already."""
    if path.is_dir():
        return
    make_folders(path.parent)
    try:
        system.make_folder(path)
    except FileExistsError:
        if not path.is_dir():
            raise
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well, and vanishes otherwise.

    The block syncs the files that it writes. An existing `path` is never replaced.
    """
    temporary = temporary_beside(path)
    system.make_folder(temporary)
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
    system.rename(path, new)
    sync_folder(new.parent)


def remove_file(path: Path) -> None:
    """Remove a file's name, durably."""
    system.unlink(path)
    sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder: at once out of sight, durably, then its content."""
    trash = path.with_name(f"{TRASH}{uuid.uuid4().hex}")
    system.rename(path, trash)
    sync_folder(path.parent)
    system.remove_tree(trash)


def remove_leftovers(folder: Path) -> None:
    """Remove what an earlier process left half-written or half-removed."""
    for path in folder.iterdir():
        if path.name.startswith((TEMPORARY, TRASH)):
            if path.is_dir() and not path.is_symlink():
                system.remove_tree(path)
            else:
                system.unlink(path)


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
        with contextlib.suppress(OSError):  # the number is for people; a full disk has no room
            os.ftruncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), str(os.getpid()).encode())

    def release(self) -> None:
        """Let another server in."""
        self._file.close()
