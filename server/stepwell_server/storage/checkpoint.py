"""A checkpoint: a folder that exists when its manifest does and all hashes match.

    <id>/parameters.safetensors    the parameters, under their names
    <id>/optimizer.safetensors     the slots: `momentum/dense_1/kernel`
    <id>/manifest.json             everything else, and the hash of every tensor

The files are written and fsynced in a temporary folder, the manifest last, and the folder is
renamed: after a power loss there is the whole checkpoint or none. A safetensors file opens with
plain `safetensors.numpy.load_file`. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from stepwell_core.definition import Definition
from stepwell_core.errors import CheckpointInvalid, StepwellError
from stepwell_core.layout import Arenas, Array, Layout
from stepwell_core.state import Counters, Snapshot, State

from stepwell_server.storage import disk

FORMAT = "stepwell-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
FILES = (PARAMETERS, OPTIMIZER, MANIFEST)
"""The files that a checkpoint has, the only names that may be downloaded."""

MAX_MANIFEST_BYTES = 1 << 30


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself.

    Attributes:
        id: Its name: a serial number and the version.
        created: UTC, ISO 8601; for people, no decision depends on it.
        definition: Of the model.
        incarnation: Of the history it was cut from.
        counters: At the cut.
        ledger: As plain values.
        files: Size in bytes by file name, without the manifest.
        hashes: xxh3_128 by file name and tensor name.
    """

    id: str
    created: str
    definition: Definition
    incarnation: str
    counters: Counters
    ledger: Mapping[str, Any]
    files: Mapping[str, int]
    hashes: Mapping[str, Mapping[str, str]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "id": self.id,
            "created": self.created,
            "incarnation": self.incarnation,
            "definition": self.definition.to_json(),
            "counters": self.counters.to_json(),
            "ledger": dict(self.ledger),
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


def write(folder: Path, checkpoint_id: str, created: str, snapshot: Snapshot) -> Manifest:
    """Write a checkpoint durably as `folder / checkpoint_id`.

    The snapshot's arrays are only read. Blocks for as long as the disk takes; call it off the event
    loop.
    """
    layout = snapshot.definition.layout
    contents = {
        PARAMETERS: layout.views(snapshot.parameters.arenas),
        OPTIMIZER: _named_slots(layout, snapshot.slots),
    }
    with disk.new_folder(folder / checkpoint_id) as temporary:
        for name, tensors in contents.items():
            save_file(tensors, temporary / name, {"format": FORMAT})
            disk.sync_file(temporary / name)
        manifest = Manifest(
            id=checkpoint_id,
            created=created,
            definition=snapshot.definition,
            incarnation=snapshot.incarnation,
            counters=snapshot.counters,
            ledger=snapshot.ledger,
            files={name: (temporary / name).stat().st_size for name in contents},
            hashes={
                name: {tensor: hash_of(array) for tensor, array in tensors.items()}
                for name, tensors in contents.items()
            },
        )
        disk.write_durably(temporary / MANIFEST, _sealed(manifest.to_json()))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the checkpoint in `folder`.

    Raises:
        CheckpointInvalid: It is missing, damaged, of a newer format, or of another program.
    """
    values = _unsealed(folder / MANIFEST)
    if values.get("format") != FORMAT or values.get("format_version") != FORMAT_VERSION:
        raise CheckpointInvalid(
            f"Checkpoint {folder.name} has the format {values.get('format')!r} version "
            f"{values.get('format_version')!r}; this server reads {FORMAT!r} version "
            f"{FORMAT_VERSION}"
        )
    try:
        return Manifest(
            id=str(values["id"]),
            created=str(values["created"]),
            definition=Definition.from_json(values["definition"]),
            incarnation=str(values["incarnation"]),
            counters=Counters.from_json(values["counters"]),
            ledger=dict(values["ledger"]),
            files={name: int(size) for name, size in values["files"].items()},
            hashes={name: dict(hashes) for name, hashes in values["hashes"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, StepwellError) as error:
        raise CheckpointInvalid(
            f"The manifest of checkpoint {folder.name} lacks something ({type(error).__name__})"
        ) from None


def read(folder: Path) -> tuple[Manifest, State]:
    """Return a checkpoint, every tensor checked against its hash; the caller owns the arrays.

    Raises:
        CheckpointInvalid: Something is missing, misshaped or damaged.
    """
    manifest = read_manifest(folder)
    layout = manifest.definition.layout
    parameters = _read_tensors(folder, PARAMETERS, manifest)
    slots = _read_tensors(folder, OPTIMIZER, manifest)
    try:
        state = State(
            definition=manifest.definition,
            counters=manifest.counters,
            ledger=manifest.ledger,
            parameters=layout.flatten(parameters),
            slots={
                slot: layout.flatten(tensors) for slot, tensors in _by_slot(layout, slots).items()
            },
        )
    except CheckpointInvalid:
        raise
    except StepwellError as error:
        raise CheckpointInvalid(f"Checkpoint {folder.name}: {error.message}") from None
    return manifest, state


def hash_of(array: Array) -> str:
    """Return the xxh3_128 of an array's bytes, in hexadecimal."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return xxhash.xxh3_128_hexdigest(flat.view(np.uint8).data if flat.size else b"")


def _named_slots(layout: Layout, slots: Mapping[str, Arenas]) -> dict[str, Array]:
    return {
        f"{slot}/{name}": view
        for slot, arenas in slots.items()
        for name, view in layout.views(arenas).items()
    }


def _by_slot(layout: Layout, tensors: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    found: dict[str, dict[str, Array]] = {}
    for key, array in tensors.items():
        slot, _, name = key.partition("/")
        found.setdefault(slot, {})[name] = array
    return found


def _read_tensors(folder: Path, name: str, manifest: Manifest) -> dict[str, Array]:
    try:
        size = (folder / name).stat().st_size
        if size != manifest.files.get(name):
            raise CheckpointInvalid(
                f"Checkpoint {folder.name}: {name} has {size} bytes instead of "
                f"{manifest.files.get(name)}"
            )
        tensors: dict[str, Array] = load_file(folder / name)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise CheckpointInvalid(
            f"Checkpoint {folder.name}: {name} cannot be read ({type(error).__name__})"
        ) from None
    expected = manifest.hashes.get(name, {})
    if tensors.keys() != expected.keys():
        raise CheckpointInvalid(f"Checkpoint {folder.name}: {name} has other tensors than it says")
    for tensor, array in tensors.items():
        if hash_of(array) != expected[tensor]:
            raise CheckpointInvalid(
                f"Checkpoint {folder.name}: tensor {tensor!r} in {name} does not match its hash"
            )
    return tensors


_SEAL = b'{"xxh3_128":"%s","manifest":'


def _sealed(values: Mapping[str, Any]) -> bytes:
    """Return the manifest file: JSON whose first value is the hash of the second's exact bytes."""
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=True).encode()
    return _SEAL % xxhash.xxh3_128_hexdigest(text).encode() + text + b"}\n"


def _unsealed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise CheckpointInvalid(f"Checkpoint {path.parent.name}: the manifest is too large")
        content = path.read_bytes()
        text = content[len(_SEAL) - 2 + 32 : -2]
        if content != _SEAL % xxhash.xxh3_128_hexdigest(text).encode() + text + b"}\n":
            raise CheckpointInvalid(
                f"Checkpoint {path.parent.name}: the manifest does not match its hash"
            )
        values = json.loads(text)
    except (OSError, ValueError) as error:
        raise CheckpointInvalid(
            f"Checkpoint {path.parent.name}: the manifest cannot be read ({type(error).__name__})"
        ) from None
    if not isinstance(values, dict):
        raise CheckpointInvalid(f"Checkpoint {path.parent.name}: the manifest is not a map")
    return values
