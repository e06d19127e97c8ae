"""The data folder: whose it is, on which file system, how much room and how fast the disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stepwell_core.errors import DataFolderInvalid, StepwellError

from stepwell_server.doctor.finding import Finding
from stepwell_server.settings import Settings
from stepwell_server.storage.folders import LOCK, check_owner
from stepwell_server.storage.stores import open_store

FREE_BYTES = 1 << 30
"""A checkpoint is written beside those that are kept, so there must be room for one more."""

DISK_BYTES = 64 << 20
DISK_BYTES_PER_S = 50e6
"""Less than this, and a checkpoint of 1 GB takes more than 20 s, and a journal falls behind."""

SYNCS = 16
SYNC_S = 0.05
"""A step waits for one sync under `always`."""

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs", "ceph"}
LOST_FILE_SYSTEMS = {"tmpfs", "ramfs", "overlay"}


def check_data_folder(settings: Settings) -> Iterator[Finding]:
    """Yield what is found of it; one that is not there would be made in the folder around it."""
    path = settings.data_dir.absolute()
    elsewhere = "choose another folder with --data-dir"
    try:
        folder = next(p for p in (path, *path.parents) if p.exists())  # where it would be made
    except OSError as error:  # a folder around it may not be looked into
        found = f"{path} cannot be looked at by user {os.geteuid()} ({error.strerror})"
        yield Finding("data folder", "failed", found, elsewhere)
        return
    if not folder.is_dir():
        yield Finding("data folder", "failed", f"{folder} is a file", elsewhere)
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            "data folder",
            "failed",
            f"{folder} belongs to user {folder.stat().st_uid} (mode {folder.stat().st_mode:o}) and "
            f"cannot be written by user {os.geteuid()}",
            f"chown {os.geteuid()} {folder}, or {elsewhere}",
        )
        return
    yield (
        _identity(path)
        if folder == path
        else Finding("data folder", "ok", f"{path} is not there yet and can be made")
    )
    yield _file_system(folder)
    yield _free_space(folder)
    yield from _disk_speed(folder)
    if settings.checkpoint_store is not None:
        yield _store(settings.checkpoint_store)


def _store(url: str) -> Finding:
    try:
        open_store(url)
    except StepwellError as error:
        found, _, received = error.message.partition(" Received: ")
        return Finding("store", "failed", found, received and f"received: {received}")
    return Finding("store", "ok", f"{url} is the URL of one; nothing was asked of it")


def _identity(path: Path) -> Finding:
    owner = f"belongs to user {path.stat().st_uid}"
    try:
        is_used = check_owner(path)
    except DataFolderInvalid as error:
        found, _, advice = error.message.partition("; ")
        return Finding("data folder", "failed", found, advice)
    if not is_used:
        return Finding("data folder", "ok", f"{path} is empty, can be written, {owner}")
    in_use = "; a server uses it at the moment" if is_locked(path) else ""
    return Finding("data folder", "ok", f"{path} can be written, {owner}{in_use}")


def is_locked(data_dir: Path) -> bool:
    """Return whether a server uses a data folder at the moment."""
    with contextlib.suppress(OSError), open(data_dir / LOCK, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def _file_system(folder: Path) -> Finding:
    kind = file_system_of(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        advice = "a journal needs a local disk; what others shall see is for --checkpoint-store"
        return Finding("file system", "warning", f"{folder} is on {kind}", advice)
    if kind in LOST_FILE_SYSTEMS:
        advice = "keep it on a disk or a volume, or it is gone with the machine or the container"
        return Finding("file system", "warning", f"{folder} is on {kind}", advice)
    return Finding("file system", "ok", f"{folder} is on {kind}")


def file_system_of(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Return the kind of file system that a folder is on, as the kernel calls it."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return "a file system that the kernel does not name"
    found = [
        (Path(target.replace("\\040", " ")), kind)
        for _, target, kind, *_ in (line.split(" ") for line in lines)
    ]
    whole = folder.resolve()
    around = [(path, kind) for path, kind in found if path == whole or path in whole.parents]
    return max(around, key=lambda mount: len(mount[0].parts), default=(Path("/"), "unknown"))[1]


def _free_space(folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB are free"
    if usage.free < FREE_BYTES:
        advice = "make room, keep fewer checkpoints (--keep-checkpoints), or use another disk"
        return Finding("free space", "warning", found, advice)
    return Finding("free space", "ok", found)


def _disk_speed(folder: Path) -> Iterator[Finding]:
    try:
        rate, sync_s = disk_speed(folder, DISK_BYTES)
    except OSError as error:
        yield Finding("disk", "failed", f"{folder}: {error.strerror}", "see `free space`")
        return
    found = f"{rate / 1e6:.0f} MB/s written and synced"
    if rate < DISK_BYTES_PER_S:
        advice = "checkpoints and journal will be slow; use a faster disk, or fewer checkpoints"
        yield Finding("disk", "warning", found, advice)
    else:
        yield Finding("disk", "ok", found)
    found = f"{sync_s * 1e3:.2f} ms for one small write and its fsync"
    if sync_s > SYNC_S:
        yield Finding("fsync", "warning", found, "use --durability everysec, or a faster disk")
    else:
        yield Finding("fsync", "ok", found)


def disk_speed(folder: Path, nbytes: int) -> tuple[float, float]:
    """Return what a disk writes, in bytes a second, and the seconds of one small synced write.

    The file has no name and is gone with this process, however that ends.
    """
    piece = os.urandom(1 << 20)  # of zeros some disks write nothing
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        began = time.perf_counter()
        for _ in range(max(1, nbytes >> 20)):
            file.write(piece)
        os.fsync(file.fileno())
        rate = max(nbytes, 1 << 20) / (time.perf_counter() - began)
        syncs = [_seconds(lambda: _write_synced(file.fileno(), piece)) for _ in range(SYNCS)]
    return rate, statistics.median(syncs)


def _write_synced(descriptor: int, piece: bytes) -> None:
    os.write(descriptor, piece[:4096])
    os.fdatasync(descriptor)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
