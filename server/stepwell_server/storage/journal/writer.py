"""Writes a model's journal: append, sync, rotate, and let go of what a checkpoint holds."""

from __future__ import annotations

import contextlib
import errno
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
from stepwell_core.errors import DiskFull, JournalBehind, ModelReadOnly

from stepwell_server.storage import disk
from stepwell_server.storage.journal import segment
from stepwell_server.storage.journal.folder import RECYCLED, SegmentName, boot_id, segments
from stepwell_server.storage.journal.format import Identity, SegmentHeader, pack_map
from stepwell_server.storage.journal.segment import Segment

SYNC_EVERY_S = 1.0
LATE_S = 2.0
"""When the disk is so far behind, `everysec` waits for it: else more than a second could go."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Journal:
    """The journal of one model. `append`, `sync` and `rotate` are its lane's alone.

    Args:
        folder: Made if it does not exist.
        identity: Of the history.
        first_number: Of the next record.
        durability: "everysec" or "always".
        max_bytes: When it `is_large`; at twice that `append` refuses.
        on_failure: Called once, on whatever thread, when the disk failed.

    Raises:
        OSError: The first segment cannot be made.

    Attributes:
        durability: As it was given.
        next_number: Of the next record.
        failure: Why nothing can be appended any more; None while all is well.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        first_number: int,
        durability: str,
        max_bytes: int,
        on_failure: Callable[[ModelReadOnly], None] | None = None,
    ) -> None:
        self.durability = durability
        self.next_number = first_number
        self.failure: ModelReadOnly | None = None
        self._folder = folder
        self._identity = identity
        self._max_bytes = max_bytes
        self._on_failure = on_failure
        self._durable = first_number  # all records below it are on the disk
        self._unsynced_since: float | None = None
        self._syncing = threading.Lock()  # a sync, or the change of the segment it is of
        self._naming = threading.Lock()  # what is in the folder
        self._is_closed = threading.Event()
        if not folder.exists():
            disk.system.make_folder(folder)
            disk.sync_folder(folder.parent)
        disk.remove_leftovers(folder)
        self._old = {name: (folder / str(name)).stat().st_size for name in segments(folder)}
        self._name, self._segment = self._new_segment()
        self._thread: threading.Thread | None = None
        if durability == "everysec":
            self._thread = threading.Thread(
                target=self._sync_every_second, name=f"journal-{identity.model}", daemon=True
            )
            self._thread.start()

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(self._old.values()) + self._segment.nbytes

    @property
    def is_large(self) -> bool:
        """Whether it is time for a checkpoint, so that old segments may go."""
        return self.nbytes >= self._max_bytes

    @property
    def is_late(self) -> bool:
        """Whether the next `append` would wait for the disk."""
        since = self._unsynced_since
        return since is not None and time.monotonic() - since > LATE_S

    def append(
        self,
        values: Mapping[str, Any],
        payload: Sequence[memoryview] = (),
        checksum: int | None = None,
    ) -> int:
        """Write a record; returns its number. It is on the disk only after `sync`.

        Args:
            values: Plain values; bytes too.
            payload: Contiguous views, only read until this returns. One that begins at a multiple
                of 4096 bytes in memory is written from where it lies.
            checksum: The payload's xxh3_64, if it is known.

        Raises:
            DiskFull, JournalBehind: The record is not there; the next one may be.
            ModelReadOnly: The disk failed, now or before.
        """
        self._check(payload)
        if self.durability == "everysec" and self.is_late:
            self.sync()
        number = self.next_number
        try:
            self._segment.append(
                number,
                self._durable,
                pack_map(values),
                payload,
                _checksum(payload) if checksum is None else checksum,
            )
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFull(
                    f"The disk of {self._folder} has no room for the record of this change "
                    f"({error.strerror}); nothing changed. Make room, or write a checkpoint so "
                    "that the journal is cut",
                    needed=sum(view.nbytes for view in payload),
                ) from None
            raise self._fail("written to", error) from None
        self.next_number = number + 1
        if self._unsynced_since is None:
            self._unsynced_since = time.monotonic()
        return number

    def _check(self, payload: Sequence[memoryview]) -> None:
        if self.failure is not None:
            raise self.failure
        nbytes = self.nbytes + sum(view.nbytes for view in payload)
        if nbytes > 2 * self._max_bytes and nbytes > self._segment.nbytes + self._max_bytes:
            raise JournalBehind(
                f"The journal has {self.nbytes} bytes, more than twice its {self._max_bytes}: "
                "checkpoints are not written as fast as changes come. Try again; if it lasts, give "
                "it more (journal_max_bytes) or a faster disk"
            )

    def sync(self) -> None:
        """Wait until all that was appended is on the disk.

        Raises:
            ModelReadOnly: It is not known to be: the disk failed, now or before.
        """
        with self._syncing:
            self._sync()

    def _sync(self) -> None:
        if self.failure is not None:
            raise self.failure
        number, began = self.next_number, time.monotonic()
        if number == self._durable:
            return
        try:
            self._segment.sync()
        except OSError as error:
            # What the kernel could not write it has forgotten: another fsync would say that all is
            # well. So this file is never asked again.
            raise self._fail("synced", error) from None
        self._durable = number
        self._unsynced_since = None if number == self.next_number else began

    def _sync_every_second(self) -> None:
        while not self._is_closed.wait(SYNC_EVERY_S):
            try:
                self.sync()
            except ModelReadOnly:
                return

    def _fail(self, what: str, error: OSError) -> ModelReadOnly:
        if self.failure is None:
            self.failure = ModelReadOnly(
                f"The journal of model {self._identity.model!r} could not be {what} "
                f"({error.strerror}), so nothing can be promised any more. It can be pulled from; "
                "look after the disk, then start the server again",
                model=self._identity.model,
            )
            if self._on_failure is not None:
                self._on_failure(self.failure)
        return self.failure

    # Segments

    def rotate(self, identity: Identity | None = None) -> int:
        """Begin another segment, durably; returns the number of its first record.

        Args:
            identity: Of another history, that begins here; None goes on with the present one.

        Raises:
            DiskFull, ModelReadOnly: The present segment goes on.
        """
        with self._syncing:
            self._sync()
            before, name, old = self._identity, self._name, self._segment
            self._identity = before if identity is None else identity
            try:
                self._name, self._segment = self._new_segment()
            except OSError as error:
                self._identity = before
                if error.errno in NO_ROOM:
                    raise DiskFull(
                        f"The disk of {self._folder} has no room for another segment of the "
                        "journal; nothing changed"
                    ) from None
                raise self._fail("begun anew", error) from None
            with self._naming:
                self._old[name] = old.nbytes
            old.close()
        return self.next_number

    def _new_segment(self) -> tuple[SegmentName, Segment]:
        with self._naming:
            serials = [name.serial for name in (*self._old, getattr(self, "_name", None)) if name]
            name = SegmentName(max(serials, default=0) + 1, self.next_number)
            header = SegmentHeader(
                self._identity,
                self.next_number,
                self.durability,
                boot_id(),
                secrets.randbits(64),
            )
            path = self._folder / str(name)
            return name, segment.create(path, header, self._folder / RECYCLED)

    def remove_before(self, number: int) -> None:
        """Let go of the segments whose records all have smaller numbers; on any thread.

        One of them is kept to be used again.
        """
        with self._naming:
            names = [*sorted(self._old), self._name]
            is_changed = False
            for name, following in itertools.pairwise(names):
                if following.first_number > number:
                    break
                self._let_go(name)
                is_changed = True
            if is_changed:
                disk.sync_folder(self._folder)

    def _let_go(self, name: SegmentName) -> None:
        path, recycled = self._folder / str(name), self._folder / RECYCLED
        if recycled.exists() or self._old[name] > self._max_bytes:
            disk.system.unlink(path)
        else:
            disk.system.rename(path, recycled)
        del self._old[name]

    def close(self) -> None:
        """Sync what was appended, unless the disk failed, and end the thread."""
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()
        if self.failure is None:
            with contextlib.suppress(ModelReadOnly):  # `on_failure` was told
                self.sync()
        self._segment.close()


def _checksum(payload: Sequence[memoryview]) -> int:
    checksum = xxhash.xxh3_64()
    for view in payload:
        checksum.update(view)
    return checksum.intdigest()
