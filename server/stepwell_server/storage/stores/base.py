"""The contract of a place for checkpoints; `tests/server/storage/stores/contract.py` holds it.

A checkpoint is a few files and a manifest. It exists when its manifest does, and the manifest is
written last; so a checkpoint is there whole or not at all, whatever fails. Files never change.
Beside the checkpoints there are *notes*: small files that do, such as the list of pins.

All methods block for as long as the place takes, and may be called on any thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from stepwell_core.errors import StoreFailed

MANIFEST = "manifest.json"


class Unsettled(StoreFailed):
    """A checkpoint was perhaps written, and perhaps not; its place does not say."""


class DraftFile(Protocol):
    """One file that is being written."""

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes; they are copied, or written, before this returns."""


class Draft(ABC):
    """A checkpoint that is being written, and does not exist yet.

    Attributes:
        prefix: What stands before the names of its files, for `ModelStore.size` and `pieces`; the
            manifest keeps it.
    """

    prefix: str = ""

    @abstractmethod
    def file(self, name: str) -> AbstractContextManager[DraftFile]:
        """Begin a file; when the block ends well its bytes are durable."""

    @abstractmethod
    def commit(self, manifest: bytes) -> None:
        """Make the checkpoint exist, durably; the last thing that is done with a draft.

        Raises:
            Conflict: There is one of that name; it is as it was.
            Unsettled: It may come to exist, or not.
        """


class Files(Protocol):
    """The files of checkpoints, as who reads them needs them; a `ModelStore` is one."""

    def size(self, checkpoint_id: str, name: str) -> int:
        """Return the bytes of a file; see `ModelStore.size`."""

    def pieces(self, checkpoint_id: str, name: str) -> Iterator[memoryview]:
        """Yield the bytes of a file; see `ModelStore.pieces`."""


class ModelStore(ABC):
    """The checkpoints of one model.

    All methods raise `StoreFailed` or `OSError` when the place fails.
    """

    @abstractmethod
    def ids(self) -> list[str]:
        """Return the names of the checkpoints that exist, in no order."""

    @abstractmethod
    def draft(self, checkpoint_id: str) -> AbstractContextManager[Draft]:
        """Begin a checkpoint; a block that ends without `commit` leaves nothing."""

    @abstractmethod
    def size(self, checkpoint_id: str, name: str) -> int:
        """Return the bytes of a file, its draft's prefix before its name.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def pieces(self, checkpoint_id: str, name: str) -> Iterator[memoryview]:
        """Yield the bytes of a file in pieces of some MiB; a piece is good until the next.

        Raises:
            FileNotFoundError: There is none.
        """

    @abstractmethod
    def remove(self, checkpoint_id: str) -> None:
        """Remove a checkpoint: from the first moment on it does not exist."""

    @abstractmethod
    def remove_all(self) -> None:
        """Remove everything of the model, notes too."""

    @abstractmethod
    def remove_leftovers(self) -> None:
        """Remove what a process that was killed had begun to write; nothing else writes now."""

    @abstractmethod
    def note(self, name: str) -> bytes | None:
        """Return a note; None if there is none."""

    @abstractmethod
    def put_note(self, name: str, content: bytes) -> None:
        """Write a note durably, in place of an earlier one of its name."""


class CheckpointStore(ABC):
    """The checkpoints of all models."""

    @abstractmethod
    def claim(self, owner: str, *, takes_over: bool = False) -> None:
        """Use the place as the only one who does.

        Args:
            owner: Its name, the same at each start.
            takes_over: Take it from another owner, who is refused everything from then on.

        Raises:
            StoreFailed: It is another one's.
        """

    @abstractmethod
    def models(self) -> list[str]:
        """Return the names of the models that have something here, in no order."""

    @abstractmethod
    def of_model(self, name: str) -> ModelStore:
        """Return the checkpoints of one model; there may be none."""
