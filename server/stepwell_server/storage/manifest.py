"""The manifest of a checkpoint: everything but the tensors, and the hash of every one of them.

A JSON file whose first value is the hash of the second's exact bytes. It is written last, so a
checkpoint is there when it is. docs/checkpoint-format.md is the format for other readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash
from stepwell_core import strict
from stepwell_core.definition import Definition
from stepwell_core.errors import CheckpointInvalid, StepwellError, StoreFailed
from stepwell_core.ledger import Ledger
from stepwell_core.state import Counters

from stepwell_server.storage import ledger_text
from stepwell_server.storage.stores.base import MANIFEST, Files

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


def read_manifest(store: Files, checkpoint_id: str) -> Manifest:
    """Return what a checkpoint says about itself.

    Raises:
        CheckpointInvalid: The manifest is missing, damaged, or `NotUnderstood`.
    """
    return _manifest(checkpoint_id, _unsealed(store, checkpoint_id)[0])


def read_with_ledger(store: Files, checkpoint_id: str) -> tuple[Manifest, Ledger]:
    """Return what a checkpoint says about itself, and of its sessions.

    Raises:
        CheckpointInvalid: See `read_manifest`.
    """
    values, text = _unsealed(store, checkpoint_id)
    return _manifest(checkpoint_id, values), _ledger(checkpoint_id, text)


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


def _ledger(checkpoint_id: str, text: bytes) -> Ledger:
    try:
        return ledger_text.decoded(text)
    except (ValueError, RecursionError) as error:
        raise _not_understood(checkpoint_id, f"its ledger cannot be read: {error}") from None


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


_SEAL = b'{"xxh3_128":"%s","manifest":'


def sealed(manifest: Manifest, ledger: bytes) -> bytes:
    """Return the manifest file.

    Args:
        manifest: What it says.
        ledger: As `ledger_text.encoded` makes it.
    """
    text = ledger_text.joined(manifest.to_json(), ledger)
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
        raise unreadable(checkpoint_id, MANIFEST, error) from None
    try:
        return ledger_text.split(text)
    except (ValueError, RecursionError) as error:
        raise _not_understood(checkpoint_id, type(error).__name__) from None


def unreadable(checkpoint_id: str, name: str, error: OSError) -> StoreFailed:
    """Return the error of a file that may be whole: the disk, or this process, did not let it be.

    What may be right the next time is not taken for damaged, nor gone back behind.
    """
    return StoreFailed(
        f"Checkpoint {checkpoint_id}: {name} could not be read now ({error.strerror}), and is not "
        "known to be damaged. Mend what keeps it from being read and try again; if its disk has "
        "lost it, move this checkpoint away, and the one before is taken. Nothing changed",
        checkpoint=checkpoint_id,
    )
