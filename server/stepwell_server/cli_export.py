"""`stepwell checkpoint export`: the files of a checkpoint in a folder, all of them or none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stepwell_core.errors import Conflict, StepwellError
from stepwell_core.names import check_identifier

from stepwell_server.storage import disk

if TYPE_CHECKING:  # not needed by a server that starts
    import httpx
    from rich.progress import Progress
    from stepwell.endpoint import Endpoint

MEDIA_TYPE = "application/octet-stream"


def export(
    endpoint: Endpoint, model: str, checkpoint: str, folder: Path, progress: Progress
) -> list[Path]:
    """Download a checkpoint's files into a folder, check each tensor, and return their paths.

    Args:
        endpoint: The server.
        model: Name of the model.
        checkpoint: Name of the checkpoint.
        folder: Made, with its parents, if it is not there. When this returns, the files are on the
            disk, also after a power loss; when it raises, all is as it was.
        progress: Has a bar for each file.

    Raises:
        Conflict: The folder has a file of one of their names.
        InvalidName: A name can be none.
        CheckpointInvalid: A tensor that arrived does not match its hash.
        StepwellError: The folder cannot be written, or what the server says.
    """
    from stepwell.calls import model_path
    from stepwell.transport.over_httpx import new_client

    from stepwell_server.storage.checkpoint import verify
    from stepwell_server.storage.manifest import FILES

    name, part = check_identifier(model, "model"), check_identifier(checkpoint, "checkpoint")
    with (
        _said_in_a_sentence(folder),
        Drafts(folder, FILES) as drafts,
        new_client(endpoint) as client,
    ):
        for file in FILES:  # the manifest is the last: with it the export is whole
            path = model_path(name, "checkpoints", part, "files", file)
            _download(client, endpoint.name, path, file, drafts, progress)
        task = progress.add_task("verifying", total=None)

        def note(phase: str, done: int, nbytes: int) -> None:
            progress.update(task, completed=done, total=nbytes)

        verify(drafts, part, note)
        return drafts.show()


class Drafts:
    """Files that are written under other names until all are there. A context manager.

    Whatever was not shown when the block ends is removed, and every folder that was made for it.

    Args:
        folder: Made when the first file begins.
        names: Of the files.

    Raises:
        Conflict: There is something of such a name already.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        for name in names:
            if (folder / name).exists():
                raise Conflict(
                    f"{folder / name} exists already, and an export replaces nothing; choose "
                    "another folder"
                )
        self._folder = folder
        self._made: list[Path] = []  # folders, the outermost first
        self._files: dict[Path, Path] = {}  # where each is now, by the name it gets
        self._is_whole = False

    def file(self, name: str) -> disk.NewFile:
        """Begin a file."""
        self._make_folder()
        target = self._folder / name
        self._files[target] = disk.temporary_beside(target)
        return disk.NewFile(self._files[target], is_large=True)

    def size(self, checkpoint_id: str, name: str) -> int:
        """Return the bytes of a file that was written; as `ModelStore.size`."""
        return self._draft(name).stat().st_size

    def pieces(self, checkpoint_id: str, name: str) -> Iterator[memoryview]:
        """Yield the bytes of a file that was written; as `ModelStore.pieces`."""
        return disk.pieces_of(self._draft(name))

    def _draft(self, name: str) -> Path:
        """Return where a file is; what stood before its name in its store does not count here."""
        return self._files[self._folder / name.rpartition("/")[2]]

    def show(self) -> list[Path]:
        """Give all files their names, durably, in the order in which they were begun."""
        for target, temporary in list(self._files.items()):
            disk.system.rename(temporary, target)
            self._files[target] = target
        for folder in [self._folder, *(made.parent for made in reversed(self._made))]:
            disk.sync_folder(folder)
        self._is_whole = True
        return list(self._files)

    def _make_folder(self) -> None:
        missing = [path for path in (self._folder, *self._folder.parents) if not path.exists()]
        for path in reversed(missing):
            disk.system.make_folder(path)
            self._made.append(path)

    def __enter__(self) -> Drafts:
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_whole:
            return
        for path in self._files.values():
            path.unlink(missing_ok=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # somebody else put something there meanwhile
                folder.rmdir()


def _download(
    client: httpx.Client, where: str, path: str, name: str, drafts: Drafts, progress: Progress
) -> None:
    """Write what a server has to a draft; nothing is made before the server says yes."""
    import httpx
    from stepwell.transport.failures import of_httpx

    try:
        with client.stream("GET", path) as response:
            _check(response, path)
            nbytes = response.headers.get("content-length")
            task = progress.add_task(name, total=None if nbytes is None else int(nbytes))
            with drafts.file(name) as file:
                for piece in response.iter_raw():
                    file.write(piece)
                    progress.advance(task, len(piece))
    except httpx.HTTPError as error:
        failure = of_httpx(error, where)
        if not failure.was_sent:
            raise failure from error
        raise type(failure)(
            f"{failure.message}; {name} did not arrive, and nothing is kept. Export again",
            was_sent=failure.was_sent,
        ) from error


def _check(response: httpx.Response, path: str) -> None:
    """Raise what the server says, unless it sends a file."""
    from stepwell.calls import Call
    from stepwell.errors import UnexpectedAnswer
    from stepwell.transport.answers import AnswerReader

    media_type = response.headers.get("content-type", "").partition(";")[0]
    if (response.status_code, media_type) == (200, MEDIA_TYPE):
        return
    reader = AnswerReader(Call("GET", path), response.status_code, response.headers)
    for piece in response.iter_raw():
        reader.feed(piece)
    reader.finish()
    raise UnexpectedAnswer("Expected a file of a checkpoint. Received: another answer of a server")


@contextlib.contextmanager
def _said_in_a_sentence(folder: Path) -> Iterator[None]:
    """Say which folder cannot be written, if that is what a block fails of."""
    try:
        yield
    except OSError as error:
        raise StepwellError(
            f"The export cannot be written to {folder} ({error.strerror}); nothing is kept. Choose "
            "another folder, or make room"
        ) from None
