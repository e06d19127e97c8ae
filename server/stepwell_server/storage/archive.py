"""The checkpoints of one model: named, verified, pinned, and let go of when they are old."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import structlog
from stepwell_core.errors import CheckpointInvalid, CheckpointNotFound, Conflict, StepwellError
from stepwell_core.state import Snapshot, State

from stepwell_server.storage import checkpoint, disk
from stepwell_server.storage.checkpoint import Progress, quietly
from stepwell_server.storage.manifest import FILES, Manifest, NotUnderstood, read_manifest
from stepwell_server.storage.stores.base import MANIFEST, ModelStore, Unsettled

PINS = "pins.json"

MOST_TOLD = 5
"""Checkpoints that an error names; pinned ones may be hundreds."""

_ID = re.compile(r"^(\d{6,})-v(\d+)$")

log = structlog.get_logger("stepwell")


class CheckpointArchive:
    """What is kept of one model's past. Thread-safe; all methods block.

    Args:
        model: Its name.
        store: Where its checkpoints are.
        place: Of the store, for people.
    """

    def __init__(self, model: str, store: ModelStore, place: str) -> None:
        self._model = model
        self._store = store
        self._place = place
        self._changing = threading.Lock()
        self._serial = 0  # the last that was tried: none is tried twice, one may appear late

    def ids(self) -> list[str]:
        """Return the names of all checkpoints, oldest first, whole or not."""
        return sorted((name for name in self._store.ids() if _ID.match(name)), key=_serial)

    def write(
        self,
        snapshot: Snapshot,
        journal_number: int,
        *,
        pinned: bool = False,
        progress: Progress = quietly,
    ) -> Manifest:
        """Write a checkpoint under the next name, and read it back.

        Args:
            snapshot: Only read.
            journal_number: Of the first record of the journal that is not in it.
            pinned: Whether it is kept for ever.
            progress: Told how far it is.

        Raises:
            Unsettled: It may be there at the next start, or not.
            DiskFull: There is no room for it.
            CheckpointInvalid: What was read back is not what was written.
            Exception: As of the store. After all but `Unsettled` there is no such checkpoint.
        """
        with self._changing:
            ids = self.ids()
            self._serial = max(self._serial, _serial(ids[-1]) if ids else 0) + 1
            name = f"{self._serial:06d}-v{snapshot.counters.version}"
            created = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                with disk.needs_room(f"checkpoint {name} of model {self._model!r}"):
                    checkpoint.write(self._store, name, created, snapshot, journal_number, progress)
                    manifest = checkpoint.verify(self._store, name, progress)
                    if pinned:  # last, so that the list never names what is not there
                        self._put_pins({*self.pinned(), name})
            except (Conflict, Unsettled):
                raise  # it is not ours, or no removal could be trusted
            except BaseException as error:
                self._undo(name, error)
                raise
            return manifest

    def _undo(self, name: str, cause: BaseException) -> None:
        """See to it that a checkpoint that could not be written whole does not exist.

        Raises:
            Unsettled: That is not certain.
        """
        try:
            if name in self._store.ids():
                self._store.remove(name)
        except (OSError, StepwellError, MemoryError) as error:
            raise Unsettled(
                f"Checkpoint {name} of model {self._model!r} could not be written "
                f"({type(cause).__name__}), nor removed ({type(error).__name__}); it may be there "
                "at the next start. Look after its disk or store"
            ) from error

    # Reading

    def manifest(self, checkpoint_id: str) -> Manifest:
        """Return what a checkpoint says about itself; the tensors are not read.

        Raises:
            CheckpointNotFound: There is none of that name.
            CheckpointInvalid: It is damaged.
        """
        with self._found(checkpoint_id) as found:
            return read_manifest(self._store, found)

    def read(self, checkpoint_id: str, progress: Progress = quietly) -> tuple[Manifest, State]:
        """Return a checkpoint, verified; raises as `manifest`."""
        with self._found(checkpoint_id) as found:
            return checkpoint.read(self._store, found, progress)

    def verify(self, checkpoint_id: str, progress: Progress = quietly) -> Manifest:
        """Check every tensor against its hash; raises as `manifest`."""
        with self._found(checkpoint_id) as found:
            return checkpoint.verify(self._store, found, progress)

    def open_file(self, checkpoint_id: str, name: str) -> tuple[int, Iterator[memoryview]]:
        """Return the bytes of a file and its content, in pieces that are good until the next.

        Raises:
            CheckpointNotFound: There is no such checkpoint, or it has no such file.
        """
        if name not in FILES:
            raise CheckpointNotFound(f"A checkpoint has the files {', '.join(FILES)}")
        with self._found(checkpoint_id) as found:
            key = name if name == MANIFEST else self.manifest(found).prefix + name
            try:
                return self._store.size(found, key), self._store.pieces(found, key)
            except FileNotFoundError:
                raise CheckpointNotFound(f"Checkpoint {found} lacks its {name}") from None

    @contextlib.contextmanager
    def _found(self, checkpoint_id: str) -> Iterator[str]:
        """Give the name of a checkpoint that exists; one that vanishes meanwhile is not damaged."""
        if not _ID.match(checkpoint_id) or checkpoint_id not in self.ids():
            raise self._missing(checkpoint_id)
        try:
            yield checkpoint_id
        except CheckpointInvalid:
            if checkpoint_id in self.ids():
                raise
            raise self._missing(checkpoint_id) from None

    def _missing(self, checkpoint_id: str) -> CheckpointNotFound:
        newest = self.ids()[-MOST_TOLD:]
        has = f"Its newest: {', '.join(reversed(newest))}" if newest else "It has none"
        return CheckpointNotFound(
            f"Model {self._model!r} has no checkpoint {checkpoint_id[:80]!r}. {has}",
            model=self._model,
        )

    def newest(self) -> tuple[Manifest, State]:
        """Return the newest checkpoint that is whole; complains of those that are not.

        Raises:
            CheckpointInvalid: None is whole, or a newer Stepwell wrote one: what that one has is
                not lost, so none before it is taken.
            StoreFailed: One cannot be read now; it may be whole, so none before it is taken.
        """
        ids = self.ids()
        for checkpoint_id in reversed(ids):
            try:
                return self.read(checkpoint_id)
            except NotUnderstood as error:
                raise CheckpointInvalid(
                    f"Model {self._model!r}: {error.message}. Nothing was changed"
                ) from None
            except CheckpointInvalid as error:
                log.error(
                    "checkpoint_invalid",
                    model=self._model,
                    checkpoint=checkpoint_id,
                    reason=error.message,
                )
        raise CheckpointInvalid(
            f"Model {self._model!r} has no checkpoint that is whole (of {len(ids)}). Bring one "
            f"back from a backup, or move {self._place} away; nothing was changed"
        )

    # Pins and removal

    def pinned(self) -> set[str]:
        """Return the names of the checkpoints that are kept for ever."""
        note = self._store.note(PINS)
        try:
            names = [] if note is None else json.loads(note)
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CheckpointInvalid(
                f"The list of pins of model {self._model!r}, {PINS}, is damaged; write it anew: a "
                "JSON list of names"
            )
        return set(names)

    def _put_pins(self, names: set[str]) -> None:
        self._store.put_note(PINS, json.dumps(sorted(names)).encode())

    def pin(self, checkpoint_id: str, pinned: bool) -> None:
        """Keep a checkpoint for ever, or no longer.

        Raises:
            CheckpointNotFound: There is none of that name.
        """
        with self._changing, self._found(checkpoint_id) as found:
            kept = self.pinned() & set(self.ids())
            self._put_pins(kept | {found} if pinned else kept - {found})

    def pin_newer(self, checkpoint_id: str) -> None:
        """Keep for ever what is newer than the newest that is whole: the past may be in it."""
        with self._changing:
            ids = self.ids()
            newer = ids[ids.index(checkpoint_id) + 1 :]
            if newer:
                self._put_pins({*self.pinned(), *newer})

    def remove(self, checkpoint_id: str) -> None:
        """Remove a checkpoint.

        Raises:
            CheckpointNotFound: There is none of that name.
            Conflict: It is pinned, or no newer one is whole. The journal goes on from the newest
                that is, and what was before was let go of: no older one can stand in for it.
        """
        with self._changing, self._found(checkpoint_id) as found:
            if found in self.pinned():
                raise Conflict(f"Checkpoint {found} is pinned; unpin it first")
            ids = self.ids()
            newer = ids[ids.index(found) + 1 :]
            if not any(self._is_whole(other) for other in reversed(newer)):
                raise Conflict(
                    f"No checkpoint of model {self._model!r} that is newer than {found} is whole, "
                    "so a restart needs it; write another first, then remove it"
                )
            self._store.remove(found)

    def retain(self, keep: int) -> list[str]:
        """Remove old checkpoints; returns which.

        The newest `keep` stay whose manifests can be read, and all that are pinned. What is damaged
        and older than those goes too.

        Args:
            keep: At least 1.
        """
        assert keep > 0, "the newest one stays"
        with self._changing:
            pinned, kept, removed = self.pinned(), 0, []
            for checkpoint_id in reversed(self.ids()):
                if checkpoint_id in pinned:
                    continue
                if kept < keep:
                    kept += self._has_manifest(checkpoint_id)
                    continue
                self._store.remove(checkpoint_id)
                removed.append(checkpoint_id)
            return removed

    def _has_manifest(self, checkpoint_id: str) -> bool:
        try:
            read_manifest(self._store, checkpoint_id)
        except CheckpointInvalid:
            return False
        return True

    def _is_whole(self, checkpoint_id: str) -> bool:
        try:
            checkpoint.verify(self._store, checkpoint_id, quietly)
        except CheckpointInvalid:
            return False
        return True


def version_of(checkpoint_id: str) -> int:
    """Return the model's version that a checkpoint's name tells, damaged or not."""
    return _numbers(checkpoint_id)[1]


def _serial(checkpoint_id: str) -> int:
    return _numbers(checkpoint_id)[0]


def _numbers(checkpoint_id: str) -> tuple[int, int]:
    match = _ID.match(checkpoint_id)
    assert match is not None
    return int(match[1]), int(match[2])
