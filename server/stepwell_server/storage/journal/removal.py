"""The segments that are no longer written: how large they are, and how they go."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from stepwell_server.storage import disk
from stepwell_server.storage.journal import notes
from stepwell_server.storage.journal.folder import RECYCLED, SegmentFile, segments
from stepwell_server.storage.journal.format import parse_name


class OldSegments:
    """What is in a journal's folder beside the segment that is being written.

    Writing blocks that were written before is twice as fast as writing fresh ones. So one file that
    is not needed any more is kept out of sight, and becomes a segment again.

    Args:
        folder: Of the journal.
        most_recycled_bytes: How much of a file is kept for that.
        first_number: Of the segment that is about to be written.
        changing: Held, for moments, by whoever reads `nbytes` or calls `add`.
    """

    def __init__(
        self,
        folder: Path,
        most_recycled_bytes: int,
        first_number: int,
        changing: threading.Lock,
    ) -> None:
        self._folder = folder
        self._most_recycled_bytes = most_recycled_bytes
        self._changing = changing
        self._removing = threading.Lock()  # one at a time
        self._files = segments(folder)
        self._current_first_number = first_number
        self.nbytes = sum(file.nbytes for file in self._files)
        self._serial = self._files[-1].serial if self._files else 0
        path = folder / RECYCLED
        self._recycled: Path | None = None
        self._is_lent = False
        if path.is_file() and not path.is_symlink():
            # Its name may not be on the disk yet. Were it written to, and the power failed, a
            # segment would come back with another one's header.
            disk.sync_folder(folder)
            self._recycled = path

    def next_serial(self) -> int:
        """Return a serial number that no segment here had; by the lane alone."""
        self._serial += 1
        return self._serial

    def add(self, path: Path, nbytes: int, current_first_number: int) -> None:
        """Take over a segment that is not written any more. `changing` is held.

        Args:
            path: Of its file.
            nbytes: Of it that are used.
            current_first_number: Of the segment that is written from now on.
        """
        parsed = parse_name(path.name)
        assert parsed is not None
        self._files.append(SegmentFile(path, *parsed, nbytes))
        self._current_first_number = current_first_number
        self.nbytes += nbytes

    @contextlib.contextmanager
    def lent_recycled(self) -> Iterator[Path | None]:
        """Give the old file that a new segment is to be made from; None if there is none.

        If the block fails it is kept for the next time, unless it has another name by then. Until
        the block ends `remove_before` gives that name to no other file.
        """
        with self._changing:
            path, self._recycled = self._recycled, None
            self._is_lent = path is not None
        try:
            yield path
        except BaseException:
            if path is not None and path.exists():
                self._put_recycled(path)
            raise
        finally:
            self._is_lent = False

    def _put_recycled(self, path: Path) -> None:
        """Keep an old file for a new segment. Its name is durable."""
        with self._changing:
            self._recycled = path

    def remove_before(self, number: int) -> None:
        """Remove the segments that have only records with smaller numbers, oldest first.

        And those that no reading from that number on needs: a later one begins before it. So go the
        leftovers of a history whose numbers went further.

        Raises:
            OSError: The disk refuses; what is left is tried again by the next call.
        """
        with self._removing:
            victims = self._before(number)
            if not victims:
                return
            recycled = self._let_go(victims)
            disk.sync_folder(self._folder)
            if recycled is not None:
                self._put_recycled(recycled)

    def _before(self, number: int) -> list[SegmentFile]:
        with self._changing:
            files, current = list(self._files), self._current_first_number
        victims = []
        for index, file in enumerate(files):
            later = files[index + 1 :]
            if min([current, *(other.first_number for other in later)]) > number:
                break
            victims.append(file)
        return victims

    def _let_go(self, victims: list[SegmentFile]) -> Path | None:
        """Remove all files but the largest, which gets its other name; that is returned.

        Not while the lane makes a segment from the file that has the name now: all go then.
        """
        largest = max(victims, key=lambda file: file.nbytes)
        with self._changing:
            is_lent = self._is_lent  # to the lane, which is about to rename what has that name
            recycled, self._recycled = self._recycled, None
        is_kept = not is_lent and (recycled is None or recycled.stat().st_size < largest.nbytes)
        for victim in victims:
            if victim is largest and is_kept:
                recycled = self._folder / RECYCLED
                disk.system.rename(victim.path, recycled)
                self._shorten(recycled)
            else:
                disk.system.unlink(victim.path)
            notes.unmark(victim.path)
            with self._changing:
                self._files.remove(victim)
                self.nbytes -= victim.nbytes
        return recycled

    def _shorten(self, path: Path) -> None:
        if path.stat().st_size > self._most_recycled_bytes:
            descriptor = disk.system.open(path, os.O_RDWR)
            try:
                disk.system.truncate(descriptor, self._most_recycled_bytes)
            finally:
                disk.system.close(descriptor)
