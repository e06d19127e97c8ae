"""Small models, and workers that push to them, for the tests of the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.layout import Arenas, Layout, Tensor
from stepwell_core.ledger import Ledger
from stepwell_core.optimizers import SGD
from stepwell_core.pipeline import Gradient
from stepwell_core.push import Push, Staged, Waiting
from stepwell_core.session import Result
from stepwell_core.state import Counters, Snapshot, State

LAYOUT = Layout([Tensor("kernel", (3, 4), "float32"), Tensor("bias", (4,), "float64")])
FIRST, SECOND = "1" * 32, "2" * 32
"""Incarnations."""

Arrays = Mapping[str, Any]


def random_arrays(rng: np.random.Generator, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    """Return an array for each tensor."""
    return {t.name: rng.standard_normal(t.shape).astype(t.dtype) for t in layout.tensors}


def gradient_of(arrays: Arrays, layout: Layout = LAYOUT) -> Gradient:
    """Return the gradient of the named arrays, which may be some of the layout's."""
    selection = layout.select(name for name in layout.names if name in arrays)
    return Gradient(selection, selection.flatten(arrays))


def new_engine(
    optimizer: Any = None, *, layout: Layout = LAYOUT, seed: int = 0, **definition: Any
) -> Engine:
    """Return an engine with random parameters; SGD with learning rate 0.5 unless told otherwise."""
    parameters = layout.flatten(random_arrays(np.random.default_rng(seed), layout))
    optimizer = SGD(0.5) if optimizer is None else optimizer
    return Engine.create(Definition("m", layout, optimizer, **definition), parameters, FIRST)


class Worker:
    """A session, and the sequence number of its next push."""

    def __init__(self, engine: Engine, name: str = "w0") -> None:
        self.engine, self.name = engine, name
        self.open()

    def open(self) -> None:
        self.session, self.previous = self.engine.open_session(self.name)
        self.sequence = 0

    def make(self, arrays: Arrays, **fields: Any) -> Push:
        """Return the push that is due; the same again until `sequence` is changed."""
        values = {
            "worker": self.name,
            "epoch": self.session.epoch,
            "sequence": self.sequence,
            "incarnation": self.engine.incarnation,
            "gradient": gradient_of(arrays, self.engine.layout),
        }
        return Push(**{**values, **fields})

    def push(self, arrays: Arrays, **fields: Any) -> Result | Waiting:
        """Make the next push."""
        push = self.make(arrays, **fields)
        self.sequence += 1
        return settle(self.engine, push)

    def close(self) -> tuple[tuple[Push, Result], ...]:
        staged = self.engine.close_session(self.name, self.session.epoch)
        return () if staged is None else self.engine.commit(staged)


def settle(engine: Engine, push: Push) -> Result | Waiting:
    """Stage and commit; return what `push` itself is answered."""
    outcome = engine.stage(push)
    if isinstance(outcome, Staged):
        return {other.key: result for other, result in engine.commit(outcome)}[push.key]
    return outcome


def parameters_of(engine: Engine) -> dict[str, np.ndarray]:
    """Return copies of the parameters by name."""
    return {name: a.copy() for name, a in engine.layout.views(engine.store.current).items()}


def image(engine: Engine) -> tuple[Any, ...]:
    """Return everything that lasts, to be compared."""
    arenas = {"": engine.store.current, **engine.store.slots}
    return (
        {(n, dtype): a.tobytes() for n, held in arenas.items() for dtype, a in held.items()},
        engine.counters,
        engine.ledger.to_json(),
        engine.definition.to_json(),
        engine.incarnation,
        engine.store.number,
        engine.gathered(),
        [push.key for push in engine.policy.waiting],
    )


def snapshot_of(engine: Engine) -> Snapshot:
    """Return a cut of the model as it is."""
    buffers = {name: engine.layout.new_arenas(None) for name in engine.store.slots}
    return engine.snapshot(buffers)


def saved(engine: Engine) -> State:
    """Return what a checkpoint would hold: a cut that went through JSON and bytes."""
    snapshot = snapshot_of(engine)
    state = State(
        Definition.from_json(through_json(snapshot.definition.to_json())),
        Counters.from_json(through_json(snapshot.counters.to_json())),
        Ledger.from_json(through_json(snapshot.ledger.to_json())),
        copied(snapshot.parameters.arenas),
        snapshot.slots,
        through_json(snapshot.gathered),
    )
    engine.store.release(snapshot.parameters)
    return state


def through_json(value: Any) -> Any:
    """Return what a file would give back."""
    return json.loads(json.dumps(value))


def copied(arenas: Arenas) -> Arenas:
    """Return arenas that nobody else writes."""
    return {dtype: array.copy() for dtype, array in arenas.items()}
