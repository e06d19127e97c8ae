"""What stands between a decision and its effect: the journal of one model, or nothing.

    memory     nothing is written down; after a crash the model goes back to its last checkpoint
    everysec   a change is written before it is made, and on the disk within about a second
    always     a change is on the disk before it is made

The lane calls these methods, in the order of its changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import structlog
from stepwell_core import record
from stepwell_core.errors import DiskFull, ModelReadOnly, StepwellError
from stepwell_core.layout import Layout
from stepwell_core.push import Staged
from stepwell_core.record import Change

from stepwell_server import failpoints
from stepwell_server.storage.journal import Identity, Journal

log = structlog.get_logger("stepwell")


class Recorder:
    """Writes down the changes of one model.

    Args:
        layout: Of the model.
        journal: Where to; None under `memory`.
        first_number: Of the next record, where there is no journal.
    """

    def __init__(self, layout: Layout, journal: Journal | None, first_number: int = 0) -> None:
        self._layout = layout
        self._journal = journal
        self._given_up: ModelReadOnly | None = None
        self._first_number = first_number

    @property
    def durability(self) -> str:
        """What is promised: "memory", "everysec" or "always"."""
        return "memory" if self._journal is None else self._journal.durability

    @property
    def waits(self) -> bool:
        """Whether a change may be made, and answered, only after `sync`."""
        return self._journal is not None and self._journal.durability == "always"

    @property
    def is_quick(self) -> bool:
        """Whether writing down a small change takes a moment only, so that the event loop may."""
        journal = self._journal
        return journal is None or (journal.durability != "always" and not journal.is_late)

    @property
    def copies_shared_memory(self) -> bool:
        """Whether a gradient must not be where its worker could still write to it."""
        return self._journal is not None

    @property
    def nbytes(self) -> int:
        """How large the journal is."""
        return 0 if self._journal is None else self._journal.nbytes

    @property
    def is_large(self) -> bool:
        """Whether it is time for a checkpoint, so that the journal may be cut."""
        return self._journal is not None and self._journal.is_large

    @property
    def failure(self) -> str | None:
        """Why the model is only read until a restart; None if it is not so."""
        failure = self._failure
        return None if failure is None else failure.message

    @property
    def has_given_up(self) -> bool:
        """Whether the model is not what it was said to be, so that only its journal is right."""
        return self._given_up is not None

    @property
    def _failure(self) -> ModelReadOnly | None:
        return self._given_up or (None if self._journal is None else self._journal.failure)

    def check(self) -> None:
        """Refuse changes that could not be written down.

        Raises:
            ModelReadOnly: The disk failed before, or a change that was written down was not made.
        """
        failure = self._failure
        if failure is not None:
            raise failure

    def give_up(self, reason: str) -> None:
        """Refuse all changes from now on: the journal and the model do not agree any more."""
        found = "its last checkpoint" if self._journal is None else "the journal"
        self._given_up = ModelReadOnly(
            f"{reason}, so the model and what is on the disk do not agree any more and nothing is "
            f"changed. It can be pulled from; start the server again, and it goes on from {found}"
        )
        log.critical("model_read_only", reason=reason)

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Make a change that was written down, in the block; if that fails all is given up.

        Under `memory` too: what is half made is never saved, nor gone on with.

        Making cannot fail, but memory can run out.
        """
        try:
            yield
        except BaseException as error:
            self.give_up(f"A change could not be made ({type(error).__name__})")
            raise

    def append(self, change: Change) -> None:
        """Write down a change that is about to be made.

        Raises:
            DiskFull, JournalBehind, ModelReadOnly: It is not written down, and must not be made.
        """
        self.check()
        if self._journal is None:
            return
        failpoints.reach("journal.before_append")
        header, payload = record.describe(change, self._layout)
        self._journal.append(header, payload, checksum=_checksum(change))
        failpoints.reach("journal.appended")

    def sync(self) -> None:
        """Wait until all that was written down is on the disk.

        Raises:
            ModelReadOnly: It is not known to be; nothing that was appended since the last `sync`
                may be made.
        """
        if self._journal is None:
            return
        try:
            self._journal.sync()
        except StepwellError:  # it knows that nothing may follow
            raise
        except BaseException as error:  # memory, or the log that a failure is told to
            self.give_up(f"The journal could not be synced ({type(error).__name__})")
            raise
        failpoints.reach("journal.synced")

    def keep(self, change: Change) -> None:
        """Write down one change, so that it may be made.

        Raises:
            DiskFull, JournalBehind, ModelReadOnly: It must not be made.
        """
        self.append(change)
        if self.waits:
            self.sync()

    def rotate(self, identity: Identity | None = None) -> int:
        """Begin a segment; returns the number of the next record.

        Without a journal there are no records. Numbers are used up all the same, so that no journal
        that begins later goes on from an earlier checkpoint of this history.

        Args:
            identity: Of another history, that begins here; None goes on with the present one.
        """
        if self._journal is not None:
            return self._journal.rotate(identity)
        self._first_number += 1
        return self._first_number

    def finish(self) -> int:
        """Return the number of the first record that a model's last checkpoint does not have.

        A journal that failed is good enough for that: the model has all that was answered. Its last
        records may be on the disk or not, and may be of changes that were never made; so a number
        is left out, and from an earlier checkpoint nobody reads on over them.

        Raises:
            ModelReadOnly: The model is not what it was said to be.
        """
        if self._given_up is not None:
            raise self._given_up
        if self._journal is None:
            return self.rotate()
        with contextlib.suppress(ModelReadOnly, DiskFull):
            return self._journal.rotate()
        return self._journal.next_number + (self._journal.failure is not None)

    def remove_before(self, number: int) -> None:
        """Let go of the records that a checkpoint has made unnecessary; on any thread."""
        if self._journal is not None:
            self._journal.remove_before(number)
            failpoints.reach("journal.segments_removed")

    def close(self) -> None:
        """Write everything to the disk and end."""
        if self._journal is not None:
            self._journal.close()


def _checksum(change: Change) -> int | None:
    """Return the xxh3_64 of a change's payload if it is known: that of a single push."""
    if not isinstance(change, Staged) or len(change.results) != 1 or change.gradient is None:
        return None
    ((push, _),) = change.results
    is_its = push.gradient.arenas is change.gradient.arenas
    return int(push.payload_fingerprint, 16) if is_its else None
