"""A model with random content, and what a checkpoint of it must hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from stepwell_core.definition import Definition
from stepwell_core.layout import Layout, Tensor
from stepwell_core.ledger import Ledger
from stepwell_core.optimizers import SGD
from stepwell_core.session import Result
from stepwell_core.state import Counters, Snapshot, State
from stepwell_core.store import Version
from stepwell_server.storage import checkpoint, manifest
from stepwell_server.storage.manifest import MANIFEST, Manifest
from stepwell_server.storage.stores import LocalStore

LAYOUT = Layout(
    [
        Tensor("dense/kernel", (3, 4), "float32"),
        Tensor("scalar", (), "float64"),
        Tensor("empty", (0, 2), "float32"),
        Tensor("bias", (4,), "float64"),
    ]
)


def snapshot(version: int = 3, seed: int = 0, name: str = "m", layout: Layout = LAYOUT) -> Snapshot:
    """Return a cut of a model with one slot and one session."""
    rng = np.random.default_rng(seed)
    ledger = Ledger()
    session, _ = ledger.open("w0")
    ledger.record("w0", session.epoch, 0, Result("applied", version, version))

    def arenas() -> dict[str, np.ndarray]:
        return {
            dtype: rng.standard_normal(size).astype(dtype) for dtype, size in layout.sizes.items()
        }

    return Snapshot(
        definition=Definition(name, layout, SGD(0.5, momentum=0.9, name="sgd")),
        incarnation="1" * 32,
        counters=Counters(version, version, version),
        ledger=ledger,
        parameters=Version(version, arenas(), move=0),
        slots={"momentum": arenas()},
    )


def nothing(*done: object) -> None:
    """Note no progress."""


def write(folder: Path, cut: Snapshot, number: int = 0) -> Manifest:
    """Write a cut as the checkpoint that `folder` is to be."""
    return checkpoint.write(
        LocalStore(folder.parent), folder.name, "2026-01-01T00:00:00+00:00", cut, number, nothing
    )


def read(folder: Path) -> tuple[Manifest, State]:
    """Read the checkpoint that a folder is."""
    return checkpoint.read(LocalStore(folder.parent), folder.name)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the checkpoint that a folder is."""
    return manifest.read_manifest(LocalStore(folder.parent), folder.name)


def assert_holds(state: State, cut: Snapshot) -> None:
    """Check that a state is the cut, to the bit."""
    assert state.definition == cut.definition
    assert state.counters == cut.counters
    assert state.ledger.to_json() == cut.ledger.to_json()
    pairs = [(state.parameters, cut.parameters.arenas)]
    pairs += [(state.slots[name], arenas) for name, arenas in cut.slots.items()]
    assert state.slots.keys() == cut.slots.keys()
    for found, expected in pairs:
        assert {d: a.tobytes() for d, a in found.items()} == {
            d: a.tobytes() for d, a in expected.items()
        }


def reseal(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's values and seal it anew, as a hostile writer would, or a newer one."""
    values = json.loads((folder / MANIFEST).read_bytes())["manifest"]
    change(values)
    if "ledger" in values and "ledger_xxh3_128" in values:
        ledger = json.dumps(values["ledger"], separators=(",", ":")).encode()
        values["ledger_xxh3_128"] = xxhash.xxh3_128_hexdigest(ledger)
    text = json.dumps(values, separators=(",", ":")).encode()
    digest = xxhash.xxh3_128_hexdigest(text).encode()
    (folder / MANIFEST).write_bytes(b'{"xxh3_128":"%s","manifest":%s}\n' % (digest, text))
