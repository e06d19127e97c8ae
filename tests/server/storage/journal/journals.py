"""Journals as the tests write and read them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stepwell_server.storage import disk
from stepwell_server.storage.journal import Identity, Journal, Reading, read

IDENTITY = Identity("digits", "layout-hash", "incarnation-1")
MAX_BYTES = 1 << 20

Content = tuple[int, dict[str, Any], bytes]


def noise(nbytes: int, seed: int = 0) -> bytes:
    """Bytes that are like no others."""
    return np.random.default_rng(seed).bytes(nbytes)


@contextlib.contextmanager
def opened(
    folder: Path, first_number: int = 0, durability: str = "always", **options: Any
) -> Iterator[Journal]:
    """A journal that is closed at the end of the block, whatever happens in it."""
    options = {"identity": IDENTITY, "max_bytes": MAX_BYTES} | options
    journal = Journal(folder, first_number=first_number, durability=durability, **options)
    try:
        yield journal
    finally:
        with contextlib.suppress(Exception):
            journal.close()


def append(journal: Journal, nbytes: int = 0, pieces: int = 1) -> Content:
    """Append a record of that many bytes of payload; return what must be read back."""
    number = journal.next_number
    payload = noise(nbytes, number)
    size = -(-nbytes // pieces)
    views = [memoryview(payload)[at : at + size] for at in range(0, nbytes, max(size, 1))]
    header = {"kind": "pushes", "number": number, "text": "x" * (number % 7)}
    assert journal.append(header, views) == number
    return number, header, payload


def contents(reading: Reading) -> list[Content]:
    """All that is read."""
    return [(record.number, record.header, bytes(record.payload)) for record in reading]


def kept(folder: Path, first_number: int = 0, identity: Identity = IDENTITY) -> list[Content]:
    """All records of a folder."""
    return contents(read(folder, identity, first_number))


def segment_paths(folder: Path) -> list[Path]:
    """The segments, oldest first."""
    return sorted(folder.glob("*.segment"))


class FailingDisk(disk.System):
    """A disk on which some calls fail: `failing["pwrite"] = errno.ENOSPC`."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        self.calls: list[str] = []

    def _reach(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise OSError(self.failing[name], os.strerror(self.failing[name]))

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        if flags & os.O_DIRECT:
            self._reach("open_direct")
        elif flags & os.O_CREAT:
            self._reach("create")
        return super().open(path, flags, mode)

    def pwrite(self, descriptor: int, content: bytes | memoryview, offset: int) -> int:
        self._reach("pwrite")
        return super().pwrite(descriptor, content, offset)

    def pwritev(self, descriptor: int, parts: Sequence[memoryview], offset: int) -> int:
        self._reach("pwrite")
        return super().pwritev(descriptor, parts, offset)

    def allocate(self, descriptor: int, offset: int, nbytes: int) -> None:
        self._reach("allocate")
        super().allocate(descriptor, offset, nbytes)

    def sync(self, descriptor: int) -> None:
        self._reach("sync")
        super().sync(descriptor)

    def sync_content(self, descriptor: int) -> None:
        self._reach("sync_content")
        super().sync_content(descriptor)

    def rename(self, path: Path, new: Path) -> None:
        self._reach("rename")
        super().rename(path, new)


NO_SPACE, BROKEN = errno.ENOSPC, errno.EIO
