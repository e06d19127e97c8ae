"""Where things lie: the data folder, in it each model's folder, and in that each checkpoint's.

<data>/stepwell.json                 what this folder is
<data>/tokens.json                   hashes of tokens
<data>/store-owner                   the name that the object store knows this folder by, if any
<data>/<model>/checkpoints/<id>/     see checkpoint.py; unless there is an object store for them
<data>/<model>/journal/              see journal/
<data>/<model>/newest-segment        of the journal; see journal/notes.py
<data>/<model>/history.sqlite        see history/
<data>/<model>/clean-stop            the checkpoint that a clean stop ended with
<data>/<model>/deleted               the model is gone; what its store has is still to be removed
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from pathlib import Path

from stepwell_core.errors import DataFolderInvalid, InvalidName
from stepwell_core.names import check_identifier

from stepwell_server.storage import disk
from stepwell_server.storage.archive import CheckpointArchive
from stepwell_server.storage.stores import CheckpointStore, LocalStore

FORMAT = "stepwell-data"
FORMAT_VERSION = 1
IDENTITY = "stepwell.json"
CLEAN_STOP = "clean-stop"
HISTORY = "history.sqlite"
DELETED = "deleted"
STORE_OWNER = "store-owner"
LOCK = ".lock"

TOKENS_FILE = "tokens.json"

NOT_YET_OURS = {LOCK, TOKENS_FILE, "lost+found"}
"""What a folder may have in it and still count as empty: tokens may be made before the first
start, and a new volume may have a folder of its file system's."""


class DataFolder:
    """The folder that one server owns.

    Args:
        path: Made if it does not exist.
        store: Where checkpoints are, if not in the folder.
        takes_over: Take the store from the server that has it; it will never run again.

    Raises:
        DataFolderInvalid: It is another program's, of a newer version, read-only, or in use.
        StoreFailed: The store cannot be used, or belongs to another data folder.
    """

    def __init__(
        self, path: Path, store: CheckpointStore | None = None, *, takes_over: bool = False
    ) -> None:
        self.path = path
        self._store = store
        identity = path / IDENTITY
        try:
            disk.make_folders(path)
            check_owner(path)
        except OSError as error:
            raise _unusable(path, error) from None
        self._lock = disk.FolderLock(path, LOCK)
        try:
            disk.remove_leftovers(path)
            if not identity.exists():
                values = {"format": FORMAT, "format_version": FORMAT_VERSION}
                disk.write_durably(identity, json.dumps(values).encode() + b"\n")
            if store is not None:
                store.claim(self._store_owner(), takes_over=takes_over)
        except OSError as error:
            self._lock.release()
            raise _unusable(path, error) from None
        except BaseException:
            self._lock.release()
            raise

    def _store_owner(self) -> str:
        """Return the name under which this folder uses a store; a random one, given once."""
        path = self.path / STORE_OWNER
        if not path.exists():
            disk.write_durably(path, secrets.token_hex(16).encode())
        return path.read_text("ascii", "replace").strip()

    def models(self) -> list[ModelFolder]:
        """Return the folders of all models, by name.

        A model that has its checkpoints in a store may have no folder yet: this is another machine.

        Raises:
            StoreFailed: The store does not say which it has.
        """
        names = {path.name for path in _model_folders(self.path)}
        if self._store is not None:  # what a killed upload left there is no model
            found = self._store.models()
            names.update(name for name in found if self._store.of_model(name).ids())
        return [ModelFolder(self.path / name, store=self._store) for name in sorted(names)]

    def new_model(self, name: str) -> ModelFolder:
        """Return the folder of a new model, out of sight until `ModelFolder.show`.

        Raises:
            InvalidName: A file of the data folder has that name.
        """
        path = self.path / check_identifier(name, "model")
        if name in (IDENTITY, TOKENS_FILE, STORE_OWNER):
            raise InvalidName(f"The name {name!r} is taken by a file of the data folder")
        return ModelFolder(disk.temporary_beside(path), name, self._store)

    def release(self) -> None:
        """Let another server use the folder."""
        self._lock.release()


class ModelFolder:
    """What is kept of one model. Thread-safe.

    Args:
        path: Of the folder.
        name: The model's, where the folder does not bear it yet.
        store: Where its checkpoints are, if not in the folder.
    """

    def __init__(
        self, path: Path, name: str | None = None, store: CheckpointStore | None = None
    ) -> None:
        self.path = path
        self.name = name or path.name
        self._store = store
        self._changing = threading.Lock()

    @property
    def checkpoints_path(self) -> Path:
        """The folder of checkpoints on this disk."""
        return self.path / "checkpoints"

    @property
    def journal_path(self) -> Path:
        """The folder of the journal."""
        return self.path / "journal"

    @property
    def history_path(self) -> Path:
        """The file of the history."""
        return self.path / HISTORY

    @property
    def archive(self) -> CheckpointArchive:
        """The model's checkpoints; after `show` they are elsewhere, so ask again."""
        if self._store is None:
            store = LocalStore(self.checkpoints_path)
            return CheckpointArchive(self.name, store, str(self.path))
        return CheckpointArchive(self.name, self._store.of_model(self.name), "its checkpoints")

    def create(self) -> None:
        """Make the folder."""
        disk.system.make_folder(self.path)
        disk.system.make_folder(self.checkpoints_path)
        disk.sync_folder(self.path)

    def show(self) -> None:
        """Give the folder of a new model its name, durably: from now on the model exists."""
        temporary, path = self.path, self.path.with_name(self.name)
        try:
            disk.rename_folder(temporary, path)
        finally:
            if not temporary.exists():  # also if only the sync failed: `remove` must find it
                self.path = path

    def remove(self) -> None:
        """Remove the folder with all that is in it, and the checkpoints wherever they are.

        May be called again if it fails. With a store it is to be: from the mark on the model is
        gone, and a start removes the rest.

        Raises:
            StoreFailed: The store still has something of the model.
        """
        with self._changing:
            if self._store is not None:
                if self.path.exists():
                    disk.write_durably(self.path / DELETED, b"")
                self._store.of_model(self.name).remove_all()
            if self.path.exists():
                disk.remove_folder(self.path)
            else:  # an earlier attempt may have failed before it was durable
                disk.sync_folder(self.path.parent)

    @property
    def is_deleted(self) -> bool:
        """Whether `remove` began, and did not end."""
        return (self.path / DELETED).exists()

    def prepare(self) -> None:
        """Make what a model has that came from a store alone; remove what was left half-written."""
        if not self.path.exists():
            self.create()
            disk.sync_folder(self.path.parent)
        if not self.checkpoints_path.exists():
            disk.system.make_folder(self.checkpoints_path)
        disk.remove_leftovers(self.path)
        disk.remove_leftovers(self.checkpoints_path)
        if self._store is not None:
            self._store.of_model(self.name).remove_leftovers()

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


def model_folders(path: Path) -> list[ModelFolder]:
    """Return the folders of all models in a data folder, by name; nothing is locked or changed.

    What a process left half-written or half-removed is not among them.

    Raises:
        DataFolderInvalid: It is no data folder, one of a newer version, or cannot be read.
    """
    try:
        if not path.is_dir() or NOT_YET_OURS.issuperset(entry.name for entry in path.iterdir()):
            raise DataFolderInvalid(f"There is no data folder of a server at {path}; name another")
        _check_identity(path / IDENTITY)
        return [ModelFolder(folder) for folder in sorted(_model_folders(path))]
    except OSError as error:
        raise DataFolderInvalid(
            f"The data folder {path} cannot be read ({error.strerror}); are you its owner?"
        ) from None


def _model_folders(path: Path) -> list[Path]:
    return [
        entry
        for entry in path.iterdir()
        if entry.is_dir()
        and entry.name not in NOT_YET_OURS
        and not entry.name.startswith((disk.TEMPORARY, disk.TRASH))
    ]


_TEMPORARY = re.compile(rf"{re.escape(disk.TEMPORARY)}[0-9a-f]{{32}}\Z")
"""Of `stepwell token`, which may write at this moment, or was killed."""


def _unusable(path: Path, error: OSError) -> DataFolderInvalid:
    return DataFolderInvalid(
        f"The data folder {path} cannot be used ({error.strerror or error}); choose another with "
        "--data-dir, or make room"
    )


def check_owner(path: Path) -> bool:
    """Return whether a folder is a server's already; an empty one can become it.

    Raises:
        DataFolderInvalid: It is another program's, or of a newer version.
        OSError: It cannot be read.
    """
    names = {entry.name for entry in path.iterdir()}
    if all(name in NOT_YET_OURS or _TEMPORARY.match(name) for name in names):
        return False
    _check_identity(path / IDENTITY)
    return True


def _check_identity(identity: Path) -> None:
    try:
        values = json.loads(identity.read_bytes())
    except (OSError, ValueError, RecursionError):
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
