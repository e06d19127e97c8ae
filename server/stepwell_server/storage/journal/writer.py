"""A model's journal while it is being written.

    journal.append(header, payload)    written, not durable
    journal.sync()                     everything appended so far is durable; one for many appends

Under `everysec` a thread syncs about a second after an append, so that nobody has to.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import xxhash
from stepwell_core.errors import DiskFull, JournalBehind, ModelReadOnly, ShuttingDown

from stepwell_server.storage import disk
from stepwell_server.storage.journal import folder as files
from stepwell_server.storage.journal import notes
from stepwell_server.storage.journal.format import Identity, pack_map
from stepwell_server.storage.journal.large import BounceBuffer
from stepwell_server.storage.journal.removal import OldSegments
from stepwell_server.storage.journal.segment import FULL, Beginning, Segment, SegmentAbandoned
from stepwell_server.storage.journal.syncing import DelayedSync

Durability = Literal["everysec", "always"]

SYNC_DELAY_S = 1.0


class Journal:
    """One model's journal, for writing. Opening it begins a new segment, durably.

    `append` and `rotate` are called by the model's lane alone; the rest is thread-safe. Once the
    disk has failed (`failure`), nothing is written or synced any more: a second fsync would say
    that all is well while what the first one lost is gone.

    Args:
        folder: Made if it does not exist; its parent does. What is in it has been read, or is older
            than the checkpoint that the model was read from.
        identity: Whose records they will be.
        first_number: Of the next record.
        durability: `everysec` has a thread that syncs; under `always` whoever appends calls `sync`.
        max_bytes: At which it is time for a checkpoint. From twice that on, appends are refused.
            None takes what the disk has room for when a segment is begun.
        on_failure: Called once, with `failure`, on the thread that met it; must not call the
            journal.
        sync_delay_s: Under `everysec`, how long after an append the sync is; at twice that the next
            append waits for it.

    Raises:
        DiskFull: There is no room for a new segment.
        ModelReadOnly: The disk refuses it.
        JournalInvalid: There are two segments of one serial number.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        first_number: int,
        durability: Durability,
        max_bytes: int | None,
        on_failure: Callable[[Exception], None] | None = None,
        *,
        sync_delay_s: float = SYNC_DELAY_S,
    ) -> None:
        self.durability: Durability = durability
        self.failure: ModelReadOnly | None = None
        self._folder = folder
        self._identity = identity
        self._next_number = first_number
        self._durable = first_number  # all smaller numbers are on the disk
        self._given_max_bytes = max_bytes
        self._on_failure = on_failure
        self._sync_delay_s = sync_delay_s
        self._is_closed = False
        self._bounce = BounceBuffer()
        self._changing = threading.Lock()  # the fields here; held for moments
        self._syncing = threading.Lock()  # around syncs and the end of a segment
        self._unsynced_since_s: float | None = None
        try:
            self._old = self._prepared()
            self._segment = self._begun(identity, self._old.nbytes)
        except OSError as error:
            raise (_disk_full() if _is_full(error) else _read_only("begun", error)) from None
        self._background: DelayedSync | None = None
        if durability == "everysec":
            name = f"journal-{identity.model}"
            self._background = DelayedSync(self._sync_quietly, sync_delay_s, name)

    @property
    def next_number(self) -> int:
        """The number that the next record will have."""
        return self._next_number

    @property
    def nbytes(self) -> int:
        """The size of all segments."""
        with self._changing:
            return self._old.nbytes + self._segment.end

    @property
    def is_large(self) -> bool:
        """Whether it is time for a checkpoint, so that old segments can go."""
        return self.nbytes >= self._max_bytes

    @property
    def is_late(self) -> bool:
        """Whether the next `append` has to wait for the disk, under `everysec`."""
        since_s = self._unsynced_since_s
        if self.durability != "everysec" or since_s is None:
            return False
        return time.monotonic() - since_s > 2 * self._sync_delay_s

    def append(
        self,
        header: Mapping[str, Any],
        payload: Sequence[memoryview] = (),
        *,
        checksum: int | None = None,
    ) -> int:
        """Write a record; it is durable after the next `sync`.

        Args:
            header: Plain values.
            payload: Contiguous views, one behind the other; only read, until this returns. One view
                that begins at a multiple of 4096 in memory is written as it lies.
            checksum: The xxh3_64 of the payload's bytes, if it is known already.

        Returns:
            Its number.

        Raises:
            DiskFull: There is no room; nothing counts as written.
            JournalBehind: The journal is twice as large as it may be; likewise.
            ModelReadOnly: The disk failed, now or before.
            JournalInvalid: The header is larger than a record may have.
            ShuttingDown: The journal is closed.
        """
        self._check()
        packed_map = pack_map(header)
        views = [view.cast("B") for view in payload if view.nbytes]
        payload_nbytes = sum(map(len, views))
        self._check_size()
        if self.is_late:
            self.sync()
        segment, number = self._segment, self._next_number
        try:
            segment.append(
                number,
                self._durable,
                packed_map,
                views,
                payload_nbytes,
                _checksum(views) if checksum is None else checksum,
            )
        except OSError as error:
            raise self._refusal(error, "written") from None
        with self._changing:
            self._next_number = number + 1
            if self._unsynced_since_s is None:
                self._unsynced_since_s = time.monotonic()
        if self._background is not None:
            self._background.ask()
        return number

    def sync(self) -> None:
        """Return when everything that was appended before is durable. On any thread.

        Raises:
            ModelReadOnly: It is not known to be, now or since before.
        """
        with self._syncing:
            self._sync_segment()

    def rotate(self, identity: Identity | None = None) -> int:
        """Begin a new segment, durably; all before it is durable then.

        Args:
            identity: Of another history that begins here; None goes on with the present one.

        Returns:
            The number of its first record, which is `next_number`.

        Raises:
            DiskFull: There is no room; the present segment goes on.
            ModelReadOnly: The disk failed, now or before. So it has if a new segment has its name
                and no more is known, even for want of room: no segment may be written to then.
            ShuttingDown: The journal is closed.
        """
        self._check()
        with self._syncing:
            self._sync_segment()
            try:
                new = self._begun(identity or self._identity, self.nbytes)
            except OSError as error:
                raise self._refusal(error, "begun anew") from None
            with self._changing:
                old, self._segment = self._segment, new
                self._old.add(old.path, old.end, new.first_number)
            self._identity = identity or self._identity
            _end(old)
        return self._next_number

    def remove_before(self, number: int) -> None:
        """Remove the segments that have only records with smaller numbers. On any thread.

        Blocks for as long as the disk takes. One of the files is kept, at most `max_bytes` of it,
        and becomes the next segment.

        Raises:
            OSError: The disk refuses; what is left is tried again by the next call.
        """
        self._old.remove_before(number)

    def close(self) -> None:
        """Sync, and end. Nothing runs or is open after it; a second call does nothing.

        Raises:
            ModelReadOnly: The last records are not known to be durable. Not for a failure that was
                told before.
        """
        with self._changing:
            if self._is_closed:
                return
            self._is_closed = True
        if self._background is not None:
            self._background.close()
        with self._syncing:
            try:
                if self.failure is None:
                    self._sync_segment()
            finally:
                _end(self._segment)

    def _prepared(self) -> OldSegments:
        """Make the folder, or make sure that all in it is durable; return what it has."""
        if not self._folder.exists():
            disk.system.make_folder(self._folder)
            disk.sync_folder(self._folder.parent)
        disk.remove_leftovers(self._folder)
        files.sync_all(self._folder)
        self._max_bytes = self._most_bytes(0)
        return OldSegments(self._folder, self._max_bytes, self._next_number, self._changing)

    def _begun(self, identity: Identity, nbytes: int) -> Segment:
        """Begin a segment, from an old file if one is kept, beside so many bytes of others."""
        self._max_bytes = self._most_bytes(nbytes)
        beginning = Beginning(
            self._folder,
            self._old.next_serial(),
            identity,
            self._next_number,
            self.durability,
            self._max_bytes,
        )
        with self._old.lent_recycled() as recycled:
            segment = Segment(beginning, self._bounce, recycled)
        try:
            notes.note_newest(segment.path)
        except BaseException as error:
            _end(segment)
            raise SegmentAbandoned.of(error) from error
        return segment

    def _most_bytes(self, nbytes: int) -> int:
        """Return how large the journal may be, which has so many bytes."""
        given = self._given_max_bytes
        return files.default_max_bytes(self._folder, nbytes) if given is None else given

    def _check(self) -> None:
        if self.failure is not None:
            raise ModelReadOnly(self.failure.message)
        if self._is_closed:
            raise ShuttingDown("The model's journal is closed; send it again")

    def _check_size(self) -> None:
        nbytes, most = self.nbytes, 2 * self._max_bytes
        if nbytes >= most:
            raise JournalBehind(
                f"The journal has {nbytes} bytes and may have {most}; try again when the "
                "checkpoint that is due has been written",
                bytes=nbytes,
                most=most,
            )

    def _sync_segment(self) -> None:
        """Sync what was appended; `_syncing` is held."""
        if self.failure is not None:
            raise ModelReadOnly(self.failure.message)
        with self._changing:
            segment, number, now_s = self._segment, self._next_number, time.monotonic()
        if number == self._durable:
            return
        try:
            segment.sync()
        except OSError as error:
            raise self._failed(error, "synced") from None
        with self._changing:
            self._durable = number
            # What came during the sync is younger than it: nothing is older than its beginning.
            self._unsynced_since_s = None if number == self._next_number else now_s

    def _sync_quietly(self) -> None:
        with contextlib.suppress(ModelReadOnly):  # `failure` has it
            self.sync()

    def _refusal(self, error: OSError, what: str) -> DiskFull | ModelReadOnly:
        return _disk_full() if _is_full(error) else self._failed(error, what)

    def _failed(self, error: OSError, what: str) -> ModelReadOnly:
        """Note that the disk failed, tell once, and return what to raise."""
        failure = _read_only(what, error)
        with self._changing:
            is_first = self.failure is None
            if is_first:
                self.failure = failure
        if is_first and self.durability == "everysec":  # else all that was answered is on the disk
            notes.mark_failed(self._segment.path, self._segment.salt)
        if is_first and self._on_failure is not None:
            self._on_failure(failure)
        return failure


def _is_full(error: OSError) -> bool:
    """Return whether there was no room, and so nothing changed."""
    return error.errno in FULL and not isinstance(error, SegmentAbandoned)


def _disk_full() -> DiskFull:
    return DiskFull(
        "The disk has no room for the model's journal; nothing changed. Free some, or wait until a "
        "checkpoint has let old records go"
    )


def _read_only(what: str, error: OSError) -> ModelReadOnly:
    return ModelReadOnly(
        f"The model's journal could not be {what} ({error.strerror}): until the server is "
        "restarted the model is only read"
    )


def _checksum(views: Sequence[memoryview]) -> int:
    digest = xxhash.xxh3_64()
    for view in views:
        digest.update(view)
    return digest.intdigest()


def _end(segment: Segment) -> None:
    """Close a segment and give back the room that it did not use; neither is worth an error."""
    with contextlib.suppress(OSError):
        segment.trim()
    with contextlib.suppress(OSError):
        segment.close()
