"""A checkpoint: a folder that exists when its manifest does and all hashes match.

    <id>/parameters.safetensors    the parameters, under their names
    <id>/optimizer.safetensors     the slots: `momentum/dense_1/kernel`
    <id>/manifest.json             everything else, and the hash of every tensor

Where the files lie is the store's affair (`stores/`); the manifest is written last, so there is the
whole checkpoint or none. A safetensors file opens with plain `safetensors.numpy.load_file`. Nothing
is ever unpickled. docs/checkpoint-format.md is the format for other readers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from stepwell_core.definition import Definition
from stepwell_core.errors import CheckpointInvalid
from stepwell_core.layout import Arenas, Array, Layout, byte_view
from stepwell_core.state import Snapshot, State, pipeline_of, slot_names

from stepwell_server.storage import ledger_text
from stepwell_server.storage.manifest import (
    FORMAT,
    OPTIMIZER,
    PARAMETERS,
    Manifest,
    read_manifest,
    read_with_ledger,
    sealed,
    unreadable,
)
from stepwell_server.storage.stores.base import Files, ModelStore
from stepwell_server.storage.tensor_files import Note, Place, TensorFile, write_tensors

Progress = Callable[[str, int, int], None]
"""Called with the phase ("writing", "verifying", "reading"), the bytes done, and all bytes."""


def quietly(phase: str, done_bytes: int, nbytes: int) -> None:
    """Note no progress."""


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
        draft.commit(sealed(manifest, ledger))
    return manifest


def read(
    store: ModelStore, checkpoint_id: str, progress: Progress = quietly
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
    manifest, ledger = read_with_ledger(store, checkpoint_id)
    _check_room(store, manifest)
    layout = manifest.definition.layout
    parameters = layout.new_arenas(None)
    slots = {name: layout.new_arenas(None) for name in _slots_of(manifest.definition)}
    tensors = {
        PARAMETERS: layout.views(parameters),
        OPTIMIZER: _named_slots(layout, slots),
    }
    note = _counted(progress, "reading", sum(manifest.files.values()))
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
            raise unreadable(manifest.id, name, error) from None
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
        raise unreadable(manifest.id, name, error) from None
    expected = manifest.hashes.get(name, {})
    for tensor, hashed in found.items():
        if hashed != expected.get(tensor):
            raise CheckpointInvalid(
                f"Checkpoint {manifest.id}: tensor {tensor!r} in {name} does not match its hash"
            )


def _counted(progress: Progress, phase: str, nbytes: int) -> Note:
    """Return what adds up the bytes of a phase."""
    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        progress(phase, done, nbytes)

    return note
