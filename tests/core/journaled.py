"""An engine whose changes are written down as a journal would, to be made again."""

from __future__ import annotations

from typing import Any

import msgpack
from stepwell_core import record
from stepwell_core.consistency import Consistency
from stepwell_core.engine import Engine
from stepwell_core.push import Push
from stepwell_core.record import (
    Change,
    ConsistencyChanged,
    Finalized,
    OptimizerChanged,
    SessionClosed,
    SessionOpened,
)
from stepwell_core.replay import replay
from stepwell_core.state import State

from tests.core.models import image, saved

Record = tuple[bytes, bytes]


def written(change: Change, engine: Engine) -> Record:
    """Return what a journal has of a change: a packed header, and bytes."""
    header, payload = record.describe(change, engine.layout)
    return msgpack.packb(header), b"".join(payload)


def read(written: Record, engine: Engine) -> Change:
    """Return the change of a record."""
    header, payload = written
    return record.read(msgpack.unpackb(header), memoryview(bytearray(payload)), engine.layout)


class Journaled:
    """Hooks of an engine that write down all that is made of it since the last `save`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.save()
        commit, open_session, close = engine.commit, engine.open_session, engine.close_session

        def committed(staged: Any) -> Any:
            self.records.append(written(staged, engine))
            return commit(staged)

        def opened(worker: str) -> Any:
            self.records.append(
                written(SessionOpened(worker, engine.ledger.last_epoch + 1), engine)
            )
            return open_session(worker)

        def closed(worker: str, epoch: int) -> Any:
            engine.ledger.find(worker, epoch)
            self.records.append(written(SessionClosed(worker, epoch), engine))
            return close(worker, epoch)

        engine.commit = committed  # type: ignore[method-assign]
        engine.open_session = opened  # type: ignore[method-assign]
        engine.close_session = closed  # type: ignore[method-assign]

    def set(self, **values: Any) -> None:
        """Change hyperparameters."""
        definition, pipeline = self.engine.prepare_hyperparameters(values)
        self.records.append(written(OptimizerChanged(definition.rule), self.engine))
        self.engine.adopt_hyperparameters(definition, pipeline)

    def switch(self, mode: Consistency) -> tuple[Push, ...]:
        """Choose another mode; returns the pushes that are to be staged again."""
        self.records.append(written(ConsistencyChanged(mode), self.engine))
        return self.engine.adopt_consistency(mode)

    def finalize(self) -> None:
        """Write the average into the parameters."""
        self.records.append(written(Finalized(), self.engine))
        self.engine.finalize()

    def save(self) -> None:
        """Write a checkpoint, from which on the journal counts."""
        self.state: State = saved(self.engine)
        self.records: list[Record] = []

    def recovered(self) -> Engine:
        """Return the engine that comes back after a crash; the checkpoint is used up."""
        engine = Engine(self.state, self.engine.incarnation)
        for entry in self.records:
            replay(engine, read(entry, engine))
        return engine


def lasting(engine: Engine) -> tuple[Any, ...]:
    """Return everything that outlives a crash: all but what waits."""
    return image(engine)[:-1]
