"""Checkpoints as folders on a local disk.

A draft is a folder under a temporary name. Its files are synced, the manifest last, then the folder
is, then it gets its name, by a rename that never replaces, then the folder above is synced: also
after a power loss there is the whole checkpoint or none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from stepwell_core.errors import Conflict

from stepwell_server import failpoints
from stepwell_server.storage import disk
from stepwell_server.storage.stores.base import MANIFEST, Draft, DraftFile, ModelStore


class LocalDraft(Draft):
    """A folder that has its name not yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.is_committed = False

    def file(self, name: str) -> AbstractContextManager[DraftFile]:
        """Begin a file in the folder."""
        return disk.NewFile(self._folder / name, is_large=True)

    def commit(self, manifest: bytes) -> None:
        """Write the manifest; the folder gets its name when the block ends."""
        failpoints.reach("checkpoint.files_written")
        disk.write_durably(self._folder / MANIFEST, manifest)
        failpoints.reach("checkpoint.manifest_written")
        self.is_committed = True


class _NotCommitted(Exception):
    """The draft is to vanish."""


class LocalStore(ModelStore):
    """The checkpoints of one model in a folder: a folder each, and a file for each note.

    Args:
        folder: Made by the first draft or note.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ids(self) -> list[str]:
        """Return the names of the folders that are no leftovers, whole or not."""
        try:
            return [path.name for path in self._folder.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def draft(self, checkpoint_id: str) -> Iterator[Draft]:
        """Give a draft; see `ModelStore.draft`."""
        try:
            with disk.new_folder(self._folder / checkpoint_id) as temporary:
                draft = LocalDraft(temporary)
                yield draft
                if not draft.is_committed:
                    raise _NotCommitted
        except _NotCommitted:
            return
        except FileExistsError:
            raise Conflict(
                f"There is a checkpoint {checkpoint_id!r} already; nothing changed"
            ) from None
        failpoints.reach("checkpoint.renamed")

    def size(self, checkpoint_id: str, name: str) -> int:
        """Return the bytes of a file."""
        return (self._folder / checkpoint_id / name).stat().st_size

    def pieces(self, checkpoint_id: str, name: str) -> Iterator[memoryview]:
        """Yield the bytes of a file."""
        return disk.pieces_of(self._folder / checkpoint_id / name)

    def remove(self, checkpoint_id: str) -> None:
        """Remove a folder; at once out of sight."""
        disk.remove_folder(self._folder / checkpoint_id)

    def remove_all(self) -> None:
        """Do nothing: the model's whole folder goes, and this one with it."""

    def remove_leftovers(self) -> None:
        """Remove folders that have no name yet, or have none any more."""
        with contextlib.suppress(FileNotFoundError):
            disk.remove_leftovers(self._folder)

    def note(self, name: str) -> bytes | None:
        """Return the content of a file beside the checkpoints."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def put_note(self, name: str, content: bytes) -> None:
        """Replace a file beside the checkpoints."""
        disk.write_durably(self._folder / name, content)
