"""How a model comes back after a stop or a crash: its newest whole checkpoint, then its journal.

All is read before anything is changed: a start that is refused leaves the folder as it was.

The incarnation stays if the history is known to be whole: the stop was clean; or everything that
was answered was on the disk (`always`), or had at least left the process, the machine has not been
started again since, and the disk never failed (`everysec`). Else it is a new one, so that workers
are told.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from typing import Any

import structlog
from stepwell_core import record
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import DataFolderInvalid, JournalInvalid
from stepwell_core.rehearsal import rehearse
from stepwell_core.replay import replay

from stepwell_server import failpoints
from stepwell_server.storage import journal
from stepwell_server.storage.folders import ModelFolder
from stepwell_server.storage.journal import Identity
from stepwell_server.storage.manifest import Manifest

log = structlog.get_logger("stepwell")


@dataclass(frozen=True)
class Recovered:
    """How a model came back.

    Attributes:
        checkpoint: The name of the checkpoint it was read from.
        damaged: The names of those after it, which were passed over.
        version: The model's, after all that was read.
        records: How many changes were made again from the journal.
        cut_off: Where the journal ended in a torn record, "file:offset"; None if it did not.
        is_whole: Whether the history is known to be whole, so that the incarnation stayed.
    """

    checkpoint: str
    damaged: list[str]
    version: int
    records: int
    cut_off: str | None
    is_whole: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Recovery:
    """What was read of a model, before anything is changed.

    Attributes:
        folder: Of the model.
        manifest: Of the checkpoint.
        engine: After all changes; of a new incarnation if the history is not known to be whole.
        next_number: Of the next record.
        recovered: For people.
    """

    folder: ModelFolder
    manifest: Manifest
    engine: Engine
    next_number: int
    recovered: Recovered


def new_incarnation() -> str:
    """Return 128 random bits in hexadecimal: the name of one uncut history of a model."""
    return secrets.token_hex(16)


def identity_of(definition: Definition, incarnation: str) -> Identity:
    """Return which history of which model a journal belongs to."""
    return Identity(definition.name, definition.layout.hash, incarnation)


def read_model(folder: ModelFolder) -> Recovery:
    """Read a model; changes nothing.

    Raises:
        CheckpointInvalid: None of its checkpoints is whole.
        JournalInvalid: A record that was on the disk is missing or damaged, or the newest segment.
        DataFolderInvalid: It is another model's folder.
    """
    manifest, state = folder.archive.newest()
    ids = folder.archive.ids()
    damaged = ids[ids.index(manifest.id) + 1 :]
    if manifest.definition.name != folder.name:
        raise DataFolderInvalid(
            f"The folder {folder.path} holds a model that calls itself "
            f"{manifest.definition.name!r}; rename the folder back"
        )
    engine = Engine(state, manifest.incarnation)
    is_clean = folder.clean_stop() == manifest.id  # then no record is needed
    if not is_clean:
        journal.check_newest(folder.journal_path)
    _sync(folder)
    try:
        made = _make_again(engine, folder, manifest)
    except JournalInvalid as error:
        if not damaged or engine.counters != manifest.counters:
            raise
        # The checkpoint that the journal goes on from is damaged: that was complained of already.
        log.error("journal_does_not_join", model=folder.name, reason=error.message)
        made = _Made(0, manifest.journal_number, None, None)
    is_whole = is_clean or _is_proven(made.last)
    if not is_whole:
        engine = Engine(engine.state(), new_incarnation())  # the old one is not used any more
    recovered = Recovered(
        checkpoint=manifest.id,
        damaged=damaged,
        version=engine.counters.version,
        records=made.count,
        cut_off=made.torn,
        is_whole=is_whole,
    )
    failpoints.reach("recovery.read")
    return Recovery(folder, manifest, engine, made.next_number, recovered)


@dataclass(frozen=True)
class _Made:
    """What was made again from a journal."""

    count: int
    next_number: int
    torn: str | None
    last: journal.LastSegment | None


def _sync(folder: ModelFolder) -> None:
    """Have the journal read from the disk itself, so that it is there at the next start too."""
    try:
        journal.sync_all(folder.journal_path)
    except OSError as error:
        raise JournalInvalid(
            f"{folder.journal_path}: the journal cannot be read from the disk ({error.strerror}). "
            "Look after the disk, or copy the data folder to another one, and start again"
        ) from None


def _make_again(engine: Engine, folder: ModelFolder, manifest: Manifest) -> _Made:
    """Make the changes of the journal again that the checkpoint does not have."""
    reading = journal.read(
        folder.journal_path,
        identity_of(manifest.definition, manifest.incarnation),
        manifest.journal_number,
        max_payload_bytes=manifest.definition.layout.payload_nbytes("float64"),
    )
    count = 0
    for entry in reading:
        if not count:
            rehearse(engine.definition)
        replay(engine, record.read(entry.header, entry.payload, engine.layout))
        count += 1
    torn = None if reading.torn is None else f"{reading.torn[0]}:{reading.torn[1]}"
    return _Made(count, reading.next_number, torn, reading.last)


def _is_proven(last: journal.LastSegment | None) -> bool:
    """Return whether all that was answered is in what was read, by the journal's newest segment."""
    if last is None:
        return False
    if last.durability == "always":
        return True
    return last.boot_id == journal.boot_id() and not last.has_failed
