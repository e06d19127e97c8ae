"""Where things lie: the data folder, in it each model's folder, and in that each checkpoint's.

<data>/stepwell.json                 what this folder is
<data>/tokens.json                   hashes of tokens
<data>/<model>/checkpoints/<id>/     see checkpoint.py
<data>/<model>/clean-stop            the checkpoint that a clean stop ended with
"""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

import structlog
from stepwell_core.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    Conflict,
    DataFolderInvalid,
    InvalidName,
    ModelNotFound,
)
from stepwell_core.names import check_identifier
from stepwell_core.state import Snapshot, State

from stepwell_server.storage import checkpoint, disk
from stepwell_server.storage.checkpoint import Manifest
from stepwell_server.tokens import TOKENS_FILE

FORMAT = "stepwell-data"
FORMAT_VERSION = 1
IDENTITY = "stepwell.json"
CLEAN_STOP = "clean-stop"
LOCK = ".lock"

NOT_YET_OURS = {LOCK, TOKENS_FILE, "lost+found"}
"""What a folder may have in it and still count as empty: tokens may be made before the first
start, and a new volume may have a folder of its file system's."""

_ID = re.compile(r"^(\d{6,})-v(\d+)$")

log = structlog.get_logger("stepwell")


class DataFolder:
    """The folder that one server owns.

    Args:
        path: Made if it does not exist.

    Raises:
        DataFolderInvalid: It is another program's, of a newer version, read-only, or in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        identity = path / IDENTITY
        try:
            path.mkdir(parents=True, exist_ok=True)
            is_empty = NOT_YET_OURS.issuperset(entry.name for entry in path.iterdir())
        except OSError as error:
            raise DataFolderInvalid(
                f"The data folder {path} cannot be used ({error.strerror}); choose another "
                "with --data-dir"
            ) from None
        if not is_empty:
            _check_identity(identity)
        self._lock = disk.FolderLock(path, LOCK)
        disk.remove_leftovers(path)
        if not identity.exists():
            values = {"format": FORMAT, "format_version": FORMAT_VERSION}
            disk.write_durably(identity, json.dumps(values).encode() + b"\n")

    def models(self) -> list[ModelFolder]:
        """Return the folders of all models, by name."""
        return [
            ModelFolder(path)
            for path in sorted(self.path.iterdir())
            if path.is_dir() and path.name not in NOT_YET_OURS
        ]

    def new_model(self, name: str) -> ModelFolder:
        """Return the folder of a new model, out of sight until `ModelFolder.show`.

        Raises:
            InvalidName: A file of the data folder has that name.
        """
        path = self.path / check_identifier(name, "model")
        if name in (IDENTITY, TOKENS_FILE):
            raise InvalidName(f"The name {name!r} is taken by a file of the data folder")
        return ModelFolder(disk.temporary_beside(path), name)

    def release(self) -> None:
        """Let another server use the folder."""
        self._lock.release()


class ModelFolder:
    """What is kept of one model. Thread-safe.

    Args:
        path: Of the folder.
        name: The model's, where the folder does not bear it yet.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or path.name
        self._changing = threading.Lock()
        self._is_removed = False

    @property
    def checkpoints_path(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def create(self) -> None:
        """Make the folder."""
        self.checkpoints_path.mkdir(parents=True)
        disk.sync_folder(self.path)

    def show(self) -> None:
        """Give the folder of a new model its name, durably: from now on the model exists."""
        path = self.path.with_name(self.name)
        disk.rename_folder(self.path, path)
        self.path = path

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        with self._changing:
            self._is_removed = True
            disk.remove_folder(self.path)

    def remove_leftovers(self) -> None:
        """Remove what an earlier process left half-written."""
        self.checkpoints_path.mkdir(exist_ok=True)
        disk.remove_leftovers(self.path)
        disk.remove_leftovers(self.checkpoints_path)

    def checkpoint_ids(self) -> list[str]:
        """Return the names of all checkpoints, oldest first, valid or not."""
        try:
            found = [path.name for path in self.checkpoints_path.iterdir() if _ID.match(path.name)]
        except FileNotFoundError:  # the model was deleted in between
            return []
        return sorted(found, key=_serial)

    def write_checkpoint(self, snapshot: Snapshot) -> Manifest:
        """Write a checkpoint under the next name; blocks for as long as the disk takes.

        Raises:
            ModelNotFound: The model was deleted in between.
        """
        with self._changing:
            if self._is_removed:
                raise ModelNotFound(f"The model {self.name!r} was deleted", model=self.name)
            ids = self.checkpoint_ids()
            serial = _serial(ids[-1]) + 1 if ids else 1
            name = f"{serial:06d}-v{snapshot.counters.version}"
            created = datetime.now(UTC).isoformat(timespec="seconds")
            return checkpoint.write(self.checkpoints_path, name, created, snapshot)

    def read_checkpoint(self, checkpoint_id: str) -> tuple[Manifest, State]:
        """Return a checkpoint, verified.

        Raises:
            CheckpointNotFound: There is none of that name.
            CheckpointInvalid: It is damaged.
        """
        return checkpoint.read(self.checkpoint_path(checkpoint_id))

    def read_manifest(self, checkpoint_id: str) -> Manifest:
        """Return what a checkpoint says about itself; the tensors are not read."""
        return checkpoint.read_manifest(self.checkpoint_path(checkpoint_id))

    def checkpoint_path(self, checkpoint_id: str) -> Path:
        """Return the folder of a checkpoint that exists."""
        if not _ID.match(checkpoint_id) or checkpoint_id not in self.checkpoint_ids():
            raise CheckpointNotFound(
                f"Model {self.name!r} has no checkpoint {checkpoint_id[:80]!r}", model=self.name
            )
        return self.checkpoints_path / checkpoint_id

    def remove_checkpoint(self, checkpoint_id: str) -> None:
        """Remove a checkpoint.

        Raises:
            CheckpointNotFound: There is none of that name.
            Conflict: It is the last one that is whole; without it the model would be lost at a
                restart.
        """
        with self._changing:
            path = self.checkpoint_path(checkpoint_id)
            others = [other for other in self.checkpoint_ids() if other != checkpoint_id]
            if not any(self._is_whole(other) for other in others):
                raise Conflict(
                    f"Checkpoint {checkpoint_id} is the last one of model {self.name!r} that is "
                    "whole; write another first"
                )
            disk.remove_folder(path)

    def newest(self) -> tuple[Manifest, State]:
        """Return the newest checkpoint that is whole; complains of those that are not.

        Raises:
            CheckpointInvalid: None is whole.
        """
        ids = self.checkpoint_ids()
        for checkpoint_id in reversed(ids):
            try:
                return self.read_checkpoint(checkpoint_id)
            except CheckpointInvalid as error:
                log.error(
                    "checkpoint_invalid",
                    model=self.name,
                    checkpoint=checkpoint_id,
                    reason=error.message,
                )
        raise CheckpointInvalid(
            f"Model {self.name!r} has no checkpoint that is whole (of {len(ids)}). Bring one back "
            f"from a backup, or move {self.path} away; nothing was changed"
        )

    def mark_clean_stop(self, checkpoint_id: str) -> None:
        """Note, durably, that nothing happened after this checkpoint."""
        disk.write_durably(self.path / CLEAN_STOP, checkpoint_id.encode())

    def clean_stop(self) -> str | None:
        """Return what `mark_clean_stop` noted."""
        try:
            return (self.path / CLEAN_STOP).read_text("utf-8", "replace")
        except FileNotFoundError:
            return None

    def forget_clean_stop(self) -> None:
        """Forget it durably: from now on things happen after that checkpoint."""
        (self.path / CLEAN_STOP).unlink(missing_ok=True)
        disk.sync_folder(self.path)

    def _is_whole(self, checkpoint_id: str) -> bool:
        try:
            self.read_checkpoint(checkpoint_id)
        except CheckpointInvalid:
            return False
        return True


def _serial(checkpoint_id: str) -> int:
    match = _ID.match(checkpoint_id)
    assert match is not None
    return int(match[1])


def _check_identity(identity: Path) -> None:
    try:
        values = json.loads(identity.read_bytes())
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataFolderInvalid(
            f"The folder {identity.parent} is not empty and not Stepwell's (no readable "
            f"{IDENTITY}); choose another with --data-dir. Nothing was changed"
        )
    if values.get("format_version") != FORMAT_VERSION:
        raise DataFolderInvalid(
            f"The data folder {identity.parent} has format version "
            f"{values.get('format_version')!r}; this server reads {FORMAT_VERSION}. Use the "
            "Stepwell that wrote it. Nothing was changed"
        )
