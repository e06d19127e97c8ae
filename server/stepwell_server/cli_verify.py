"""`stepwell checkpoint verify`: what becomes of checkpoints that are read whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell_core.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    ModelNotFound,
    StoreFailed,
)
from stepwell_core.names import check_identifier

if TYPE_CHECKING:  # not needed by a server that starts
    import stepwell
    from rich.progress import Progress

    from stepwell_server.storage.archive import CheckpointArchive


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        model: Name of the model.
        id: Of its checkpoint; None if it has none.
        invalid: What is wrong; None if every tensor matches its hash.
    """

    model: str
    id: str | None
    invalid: str | None


def verify_served(model: stepwell.Model, checkpoint: str | None) -> list[Verdict]:
    """Have a server read a model's checkpoints.

    Args:
        model: On the server.
        checkpoint: One of them; None means all, those with a damaged manifest too.

    Raises:
        CheckpointNotFound: There is none, or none of that name.
    """
    ids = [checkpoint] if checkpoint else [each.id for each in model.checkpoints()]
    verdicts = _verdicts(model.name, ids, model.verify, is_named=checkpoint is not None)
    if not verdicts:
        raise CheckpointNotFound(f"Model {model.name!r} has no checkpoint")
    return verdicts


def verify_folder(
    data_dir: Path, model: str | None, checkpoint: str | None, progress: Progress | None = None
) -> list[Verdict]:
    """Read the checkpoints in a data folder; nothing is changed, and no server needed.

    A model without any is told beside the others, as invalid: nothing says that it is whole.

    Args:
        data_dir: A server's.
        model: One of its models; None means all.
        checkpoint: One of the model's; None means all.
        progress: Has a bar for each checkpoint; None draws none.

    Raises:
        DataFolderInvalid: It is no data folder.
        ModelNotFound: There is none, or none of that name.
        CheckpointNotFound: The model has none of that name.
    """
    from stepwell_server.storage.folders import model_folders

    folders = [each for each in model_folders(data_dir) if model in (None, each.name)]
    if not folders:
        which = "" if model is None else f" {check_identifier(model, 'model')!r}"
        raise ModelNotFound(f"There is no model{which} in {data_dir}")
    verdicts = []
    for folder in folders:
        verdicts += _of_archive(folder.name, folder.archive, checkpoint, progress)
    return verdicts


def _of_archive(
    model: str, archive: CheckpointArchive, checkpoint: str | None, progress: Progress | None
) -> list[Verdict]:
    def verify(each: str) -> None:
        if progress is None:
            archive.verify(each)
            return
        task = progress.add_task(f"{model} {each}", total=None)
        archive.verify(
            each, lambda phase, done, nbytes: progress.update(task, completed=done, total=nbytes)
        )

    try:
        ids = [checkpoint] if checkpoint else archive.ids()
        found = _verdicts(model, ids, verify, is_named=checkpoint is not None)
    except OSError as error:
        return [Verdict(model, None, f"its checkpoints cannot be read ({error.strerror})")]
    if found:
        return found
    reason = "there is no checkpoint of it here; if they are in an object store, ask the server"
    return [Verdict(model, None, reason)]


def _verdicts(
    model: str, ids: list[str], check: Callable[[str], Any], *, is_named: bool
) -> list[Verdict]:
    """Check all of `ids`; what a running server removed meanwhile is no matter, unless named."""
    verdicts = []
    for each in ids:
        try:
            verdicts.append(Verdict(model, each, _reason(partial(check, each))))
        except CheckpointNotFound:
            if is_named:
                raise
    return verdicts


def _reason(check: Callable[[], Any]) -> str | None:
    try:
        check()
    except (CheckpointInvalid, StoreFailed) as error:  # damaged, or not to be read now
        return error.message
    return None
