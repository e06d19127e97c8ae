"""A checkpoint: a folder that exists when its manifest does and all hashes match.

    <id>/parameters.safetensors    the parameters, under their names
    <id>/optimizer.safetensors     the slots: `momentum/dense_1/kernel`
    <id>/manifest.json             everything else, and the hash of every tensor

Where the files lie is the store's affair (`stores/`); the manifest is written last, so there is the
whole checkpoint or none. A safetensors file opens with plain `safetensors.numpy.load_file`. Nothing
is ever unpickled. docs/checkpoint-format.md is the format for other readers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from stepwell_core import strict
from stepwell_core.definition import Definition
from stepwell_core.errors import CheckpointInvalid, StepwellError, StoreFailed
from stepwell_core.layout import Arenas, Array, Layout, byte_view
from stepwell_core.ledger import Ledger
from stepwell_core.state import Counters, Snapshot, State, pipeline_of, slot_names

from stepwell_server.storage import ledger_text
from stepwell_server.storage.stores.base import MANIFEST, Files, ModelStore
from stepwell_server.storage.tensor_files import Note, Place, TensorFile, write_tensors

FORMAT = "stepwell-checkpoint"
FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 had no journal beside it."""

PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
FILES = (PARAMETERS, OPTIMIZER, MANIFEST)
"""The files that a checkpoint has, the only names that may be downloaded."""

MAX_MANIFEST_BYTES = 256 << 20
"""Of 65,536 tensors with the longest names, and 10,000 sessions with all their results: 100 MB."""

Progress = Callable[[str, int, int], None]
"""Called with the phase ("writing", "verifying"), the bytes done, and the bytes in all."""


class NotUnderstood(CheckpointInvalid):
    """Its bytes are those that were written, but another Stepwell wrote them: a newer one."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself.

    Attributes:
        id: Its name: a serial number and the version.
        created: UTC, ISO 8601; for people, no decision depends on it.
        definition: Of the model.
        incarnation: Of the history it was cut from.
        counters: At the cut.
        ledger_hash: By which it is known whether a ledger is the one at the cut; the ledger itself
            is not kept here. Empty if the checkpoint is older than that.
        journal_number: Of the first record of the journal that is not in the checkpoint.
        prefix: Before the files' names in their store.
        files: Size in bytes by file name, without the manifest.
        hashes: xxh3_128 by file name and tensor name.
        gathered: What a buffered model has gathered: the count, and the weights by tensor.
    """

    id: str
    created: str
    definition: Definition
    incarnation: str
    counters: Counters
    ledger_hash: str
    journal_number: int
    prefix: str
    files: Mapping[str, int]
    hashes: Mapping[str, Mapping[str, str]]
    gathered: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without the ledger."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "id": self.id,
            "created": self.created,
            "incarnation": self.incarnation,
            "definition": self.definition.to_json(),
            "counters": self.counters.to_json(),
            "gathered": dict(self.gathered),
            "journal_number": self.journal_number,
            "prefix": self.prefix,
            "files": dict(self.files),
            "hashes": {name: dict(hashes) for name, hashes in self.hashes.items()},
        }

    def summary(self) -> dict[str, Any]:
        """Return what lists show."""
        return {
            "id": self.id,
            "created": self.created,
            "version": self.counters.version,
            "parameters_version": self.counters.parameters_version,
            "incarnation": self.incarnation,
            "bytes": sum(self.files.values()),
            "files": list(FILES),
        }


def write(
    store: ModelStore,
    checkpoint_id: str,
    created: str,
    snapshot: Snapshot,
    journal_number: int,
    progress: Progress,
) -> Manifest:
    """Write a checkpoint durably, piece by piece.

    The snapshot's arrays are only read. Blocks for as long as the store takes; call it off the
    event loop.

    Raises:
        Conflict: There is one of that name.
    """
    layout = snapshot.definition.layout
    contents = {
        PARAMETERS: layout.views(snapshot.parameters.arenas),
        OPTIMIZER: _named_slots(layout, snapshot.slots),
    }
    note = _counted(progress, "writing", layout.nbytes * (1 + len(snapshot.slots)))
    files, hashes = {}, {}
    with store.draft(checkpoint_id) as draft:
        for name, tensors in contents.items():
            with draft.file(name) as file:
                files[name], hashes[name] = write_tensors(file, tensors, {"format": FORMAT}, note)
        ledger = ledger_text.encoded(snapshot.ledger)
        manifest = Manifest(
            id=checkpoint_id,
            created=created,
            definition=snapshot.definition,
            incarnation=snapshot.incarnation,
            counters=snapshot.counters,
            ledger_hash=ledger_text.hash_of(ledger),
            journal_number=journal_number,
            prefix=draft.prefix,
            files=files,
            hashes=hashes,
            gathered=snapshot.gathered,
        )
        draft.commit(_sealed(ledger_text.joined(manifest.to_json(), ledger)))
    return manifest


def read_manifest(store: Files, checkpoint_id: str) -> Manifest:
    """Return what a checkpoint says about itself.

    Raises:
        CheckpointInvalid: The manifest is missing, damaged, or `NotUnderstood`.
    """
    return _manifest(checkpoint_id, _unsealed(store, checkpoint_id)[0])


def _manifest(checkpoint_id: str, values: Mapping[str, Any]) -> Manifest:
    version = values.get("format_version")
    is_known = type(version) is int and version in READABLE_VERSIONS  # 2.0 and true are not
    if values.get("format") != FORMAT or not is_known:
        said = f"{values.get('format')!r:.40} version {version!r:.40}"
        reason = f"format {said}; it reads {FORMAT!r} up to version {FORMAT_VERSION}"
        raise _not_understood(checkpoint_id, reason)
    try:
        return Manifest(
            id=_is(values["id"], checkpoint_id),
            created=strict.text(values["created"]),
            definition=Definition.from_json(values["definition"]),
            incarnation=strict.text(values["incarnation"]),
            counters=Counters.from_json(values["counters"]),
            ledger_hash=values.get("ledger_xxh3_128", ""),
            journal_number=0 if version == 1 else strict.integer(values["journal_number"]),
            prefix="" if version == 1 else check_prefix(values["prefix"]),
            files={name: strict.integer(size) for name, size in values["files"].items()},
            hashes={name: dict(hashes) for name, hashes in values["hashes"].items()},
            gathered=dict(values.get("gathered", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError, StepwellError) as error:
        reason = error.message if isinstance(error, StepwellError) else type(error).__name__
        raise _not_understood(checkpoint_id, reason) from None


def _not_understood(checkpoint_id: str, reason: str) -> NotUnderstood:
    return NotUnderstood(
        f"Checkpoint {checkpoint_id} has a manifest that this server does not understand "
        f"({reason}). Use the Stepwell that wrote it"
    )


def read(
    store: ModelStore, checkpoint_id: str, progress: Progress | None = None
) -> tuple[Manifest, State]:
    """Return a checkpoint, every tensor checked against its hash; the caller owns the arrays.

    Args:
        store: Where it is.
        checkpoint_id: Its name.
        progress: Told how far it is.

    Raises:
        CheckpointInvalid: Something is missing, misshaped or damaged.
        StoreFailed: It cannot be read now.
    """
    values, text = _unsealed(store, checkpoint_id)
    manifest = _manifest(checkpoint_id, values)
    ledger = _ledger(checkpoint_id, text)
    _check_room(store, manifest)
    layout = manifest.definition.layout
    parameters = layout.new_arenas(None)
    slots = {name: layout.new_arenas(None) for name in _slots_of(manifest.definition)}
    tensors = {
        PARAMETERS: layout.views(parameters),
        OPTIMIZER: _named_slots(layout, slots),
    }
    note = _counted(progress or _nothing, "reading", sum(manifest.files.values()))
    for name, arrays in tensors.items():
        _read_file(store, manifest, name, arrays, note)
    counters, gathered = manifest.counters, manifest.gathered
    state = State(manifest.definition, counters, ledger, parameters, slots, gathered)
    return manifest, state


def verify(store: Files, checkpoint_id: str, progress: Progress) -> Manifest:
    """Read a checkpoint whole, keep nothing, and check every tensor against its hash.

    Raises:
        CheckpointInvalid: Something is missing, misshaped or damaged.
        StoreFailed: It cannot be read now.
    """
    manifest = read_manifest(store, checkpoint_id)
    note = _counted(progress, "verifying", sum(manifest.files.values()))
    for name in (PARAMETERS, OPTIMIZER):
        _read_file(store, manifest, name, None, note)
    return manifest


def _ledger(checkpoint_id: str, text: bytes) -> Ledger:
    try:
        return ledger_text.decoded(text)
    except (ValueError, RecursionError) as error:
        raise _not_understood(checkpoint_id, f"its ledger cannot be read: {error}") from None


def _check_room(store: ModelStore, manifest: Manifest) -> None:
    """Refuse files that are smaller than their tensors, before arrays of that size are allocated.

    A file that is not there is the affair of who reads it: nothing is allocated for it either.
    """
    for name, places in places_of(manifest.definition).items():
        least = sum(place.nbytes for place in places.values())
        said = manifest.files.get(name, 0)
        try:
            size = store.size(manifest.id, manifest.prefix + name)
        except FileNotFoundError:
            size = -1
        except OSError as error:
            raise _unreadable(manifest.id, name, error) from None
        if not least <= size == said:
            found = "is missing, so it cannot be read" if size < 0 else f"has {size} bytes"
            raise CheckpointInvalid(
                f"Checkpoint {manifest.id}: {name} {found} instead of {said}, and its tensors "
                f"have {least}"
            )


def places_of(definition: Definition) -> dict[str, dict[str, Place]]:
    """Return the tensors that each file of a model's checkpoint has."""
    places = {tensor.name: Place(tensor.shape, tensor.dtype) for tensor in definition.layout}
    slots = {
        f"{slot}/{name}": place for slot in _slots_of(definition) for name, place in places.items()
    }
    return {PARAMETERS: places, OPTIMIZER: slots}


def _is(value: object, expected: str) -> str:
    """Return the name of a checkpoint: a folder's, which its manifest says too."""
    if value != expected:
        raise ValueError("it says another name than its own")
    return expected


def check_prefix(prefix: object) -> str:
    """Return a prefix that a manifest names.

    Raises:
        ValueError: It leads elsewhere.
    """
    if not isinstance(prefix, str) or not re.fullmatch(r"([0-9a-f]{16}/)?", prefix):
        raise ValueError("a prefix is one draft's, or nothing")
    return prefix


def hash_of(array: Array) -> str:
    """Return the xxh3_128 of an array's bytes, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(byte_view(np.ascontiguousarray(array)))


def _slots_of(definition: Definition) -> list[str]:
    return list(slot_names(definition, pipeline_of(definition)))


def _named_slots(layout: Layout, slots: Mapping[str, Arenas]) -> dict[str, Array]:
    return {
        f"{slot}/{name}": view
        for slot, arenas in slots.items()
        for name, view in layout.views(arenas).items()
    }


def _read_file(
    store: Files,
    manifest: Manifest,
    name: str,
    into: Mapping[str, Array] | None,
    note: Note,
) -> None:
    """Read one file, into arrays or to nowhere, and check all of it."""
    try:
        key = manifest.prefix + name
        size = store.size(manifest.id, key)
        if size != manifest.files.get(name):
            raise ValueError(f"it has {size} bytes instead of {manifest.files.get(name)}")
        places = places_of(manifest.definition)[name]
        file = TensorFile(store.pieces(manifest.id, key), size, places)
        views = {} if into is None else {key: byte_view(array) for key, array in into.items()}
        found = file.read(views.get, note)
    except (FileNotFoundError, ValueError) as error:
        reason = error if type(error) is ValueError else type(error).__name__
        raise CheckpointInvalid(
            f"Checkpoint {manifest.id}: {name} cannot be read: {reason}"
        ) from None
    except OSError as error:
        raise _unreadable(manifest.id, name, error) from None
    expected = manifest.hashes.get(name, {})
    for tensor, hashed in found.items():
        if hashed != expected.get(tensor):
            raise CheckpointInvalid(
                f"Checkpoint {manifest.id}: tensor {tensor!r} in {name} does not match its hash"
            )


def _unreadable(checkpoint_id: str, name: str, error: OSError) -> StoreFailed:
    """Return the error of a file that may be whole: the disk, or this process, did not let it be.

    What may be right the next time is not taken for damaged, nor gone back behind.
    """
    return StoreFailed(
        f"Checkpoint {checkpoint_id}: {name} could not be read now ({error.strerror}), and is not "
        "known to be damaged. Mend what keeps it from being read and try again; if its disk has "
        "lost it, move this checkpoint away, and the one before is taken. Nothing changed",
        checkpoint=checkpoint_id,
    )


def _counted(progress: Progress, phase: str, nbytes: int) -> Note:
    """Return what adds up the bytes of a phase."""
    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        progress(phase, done, nbytes)

    return note


def _nothing(*done: object) -> None:
    """Note no progress."""


_SEAL = b'{"xxh3_128":"%s","manifest":'


def _sealed(text: bytes) -> bytes:
    """Return the manifest file: JSON whose first value is the hash of the second's exact bytes."""
    return _SEAL % xxhash.xxh3_128_hexdigest(text).encode() + text + b"}\n"


def _unsealed(store: Files, checkpoint_id: str) -> tuple[dict[str, Any], bytes]:
    """Return what a manifest says, and the text of its ledger."""
    try:
        if store.size(checkpoint_id, MANIFEST) > MAX_MANIFEST_BYTES:
            raise CheckpointInvalid(f"Checkpoint {checkpoint_id}: the manifest is too large")
        content = b"".join(map(bytes, store.pieces(checkpoint_id, MANIFEST)))
        text = content[len(_SEAL) - 2 + 32 : -2]
        if content != _SEAL % xxhash.xxh3_128_hexdigest(text).encode() + text + b"}\n":
            damaged = f"Checkpoint {checkpoint_id}: the manifest does not match its hash"
            raise CheckpointInvalid(damaged)
    except FileNotFoundError:
        raise CheckpointInvalid(f"Checkpoint {checkpoint_id} has no manifest") from None
    except OSError as error:
        raise _unreadable(checkpoint_id, MANIFEST, error) from None
    try:
        return ledger_text.split(text)
    except (ValueError, RecursionError) as error:
        raise _not_understood(checkpoint_id, type(error).__name__) from None
