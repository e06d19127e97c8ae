"""One model as the server runs it: its engine on its lane, its folder, and who waits for it.

Methods are called on the event loop. What touches the engine goes through the lane; two things do
not: reading a version that is held, and files, which have threads of their own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import structlog
from stepwell_core import keras_config
from stepwell_core.definition import Definition
from stepwell_core.encoding import rehearse_encoding
from stepwell_core.engine import Engine
from stepwell_core.errors import (
    ModelNotFound,
    PreconditionFailed,
    ShuttingDown,
    StepwellError,
    WorkerNotFound,
)
from stepwell_core.layout import Arenas
from stepwell_core.ledger import Result, Session
from stepwell_core.push import Push
from stepwell_core.rehearsal import rehearse
from stepwell_core.state import Counters, State
from stepwell_core.store import Version

from stepwell_server.checkpoints import Checkpoints
from stepwell_server.lane import Lane
from stepwell_server.leases import Lease, Part
from stepwell_server.pulls import Pulls
from stepwell_server.pushes import Pushes
from stepwell_server.readers import Readers
from stepwell_server.shared_memory import RegionArenas, shared_arenas
from stepwell_server.storage.checkpoint import Manifest
from stepwell_server.storage.folders import ModelFolder

T = TypeVar("T")

log = structlog.get_logger("stepwell")

_WAITS_NO_MORE = "The push waited for others and does so no more; send it again"


def new_incarnation() -> str:
    """Return 128 random bits in hexadecimal: the name of one uncut history of a model."""
    return secrets.token_hex(16)


class HostedModel:
    """A model that the server runs.

    Args:
        engine: Belongs to this object's lane from now on.
        folder: Where its checkpoints are.
        push_wait_s: How long a push that waits for others is kept before it is answered `waiting`.
        part: Of the staging, for its pushes.
        saved: The checkpoint that it was read from, if any.
    """

    def __init__(
        self,
        engine: Engine,
        folder: ModelFolder,
        push_wait_s: float,
        part: Part,
        saved: Manifest | None = None,
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.part = part
        self.pulls = Pulls()
        self._loop = asyncio.get_running_loop()
        self._lane = Lane(engine.definition.name, self._loop)
        self.pushes = Pushes(engine, self._lane, self._submit, self._check_running, push_wait_s)
        self.readers = Readers(engine)
        self._warm_dtypes = {"native"}  # of pushes
        self._warm_encodings = {"native"}  # of pulls
        self._checkpoints = Checkpoints(engine, folder, self._run, saved)
        self._is_stopping = False

    @property
    def definition(self) -> Definition:
        """What the model is now."""
        return self.engine.definition

    async def push(self, push: Push, lease: Lease | None = None) -> Result:
        """Make a push; see `Pushes.push`. Compiles before, if its dtype has not come yet."""
        self._check_running()
        await self._warm(push.gradient.dtype)
        pushed = self.pushes.push(push, lease)
        del push  # while it waits nobody holds its gradient but who will read it
        return await pushed

    async def _warm(self, dtype: str) -> None:
        """Compile for a payload dtype that has not come yet, off the lane."""
        if dtype not in self._warm_dtypes:
            await asyncio.to_thread(rehearse, self.definition, dtype)
            self._warm_dtypes.add(dtype)

    # Reading

    async def read(self, function: Callable[[Engine], T]) -> T:
        """Return `function` of the engine, which may not change it, between two changes.

        It must return copies, or values that never change.
        """
        return await self._run(lambda: function(self.engine))

    async def warm_encoding(self, dtype: str) -> None:
        """Compile for a pull dtype that was not asked for yet; before a version is held for it."""
        if dtype not in self._warm_encodings:
            await asyncio.to_thread(rehearse_encoding, self.engine.layout, dtype)
            self._warm_encodings.add(dtype)

    async def hold(self) -> tuple[str, Version]:
        """Hold the current version, cutting off slow readers if it has to be; see `Readers.hold`.

        Raises:
            VersionsExhausted: Readers hold every buffer that can be spared, and none is slow.
        """
        return await self.pulls.hold(self.readers.hold)

    def release(self, version: Version) -> None:
        """Give back what `hold` returned."""
        self.engine.store.release(version)

    async def share(self) -> None:
        """Keep the parameters where other processes can read them, from now on.

        Raises:
            NoSharedMemory: There is no memory for it; nothing has changed.
        """
        if not self._is_shared:
            await self._run(self._move)

    @property
    def _is_shared(self) -> bool:
        return isinstance(self.engine.store.current, RegionArenas)

    def _move(self) -> None:
        layout = self.engine.layout
        if not self._is_shared:  # nor by somebody who came in between
            self.engine.store.move(RegionArenas(layout), lambda: shared_arenas(layout))

    # Sessions

    async def open_session(self, worker: str) -> tuple[Session, Session | None, str, Counters]:
        """Open a session.

        Returns:
            The session, the one before, and the model's incarnation and counters at that moment.
        """

        def open_session() -> tuple[Session, Session | None, str, Counters]:
            session, previous = self.engine.open_session(worker)
            self.pushes.forget()
            return session, previous, self.engine.incarnation, self.engine.counters

        return await self._change(open_session)

    async def close_session(self, worker: str, epoch: int | None) -> None:
        """Close a session; the current one if `epoch` is None.

        Raises:
            WorkerNotFound: There never was a session of that worker.
        """

        def close() -> None:
            session = self.engine.ledger.sessions.get(worker)
            if session is None:
                raise WorkerNotFound(f"The model knows no worker {worker!r}", worker=worker)
            staged = self.engine.close_session(worker, session.epoch if epoch is None else epoch)
            if staged is not None:
                self.pushes.commit(staged)
            self.pushes.forget()

        await self._change(close)

    # Changes by an administrator

    async def finalize(self) -> Counters:
        """See `Engine.finalize`."""

        def finalize() -> Counters:
            counters = self.engine.finalize()
            self.pushes.forget()
            return counters

        return await self._change(finalize)

    async def overwrite(
        self, parameters: Arenas, lease: Lease | None = None
    ) -> tuple[str, Counters]:
        """See `Engine.overwrite`; returns the new incarnation, its first checkpoint written.

        Args:
            parameters: Copied.
            lease: Of their memory, if that is staged. Lent from here until they are copied.
        """
        cut = await self._cut(lambda new: self.engine.overwrite(parameters, new), lease)
        await self.checkpoint()
        return cut

    async def restore(self, state: State) -> tuple[str, Counters]:
        """See `Engine.restore`; returns the new incarnation, its first checkpoint written."""
        cut = await self._cut(lambda new: self.engine.restore(state, new))
        self._warm_dtypes = set()
        await self._warm("native")
        await self.checkpoint()
        return cut

    async def _cut(
        self, function: Callable[[str], Counters], lease: Lease | None = None
    ) -> tuple[str, Counters]:
        """Begin a new history."""

        def cut() -> tuple[str, Counters]:
            try:
                incarnation = new_incarnation()
                counters = function(incarnation)
            finally:
                if lease is not None:
                    lease.release()
            self.readers.incarnation = incarnation  # after the version is there; see `hold`
            self.pushes.forget()
            return incarnation, counters

        self._check_running()
        return await self._submit(cut, lease)

    async def set_hyperparameters(self, values: Mapping[str, Any], if_match: str | None) -> None:
        """Change hyperparameters from the next step on.

        Raises:
            PreconditionFailed: The optimizer is not the one that `if_match` names.
            InvalidArgument: See `Engine.prepare_hyperparameters`.
        """
        while not await self._try_hyperparameters(values, if_match):
            pass  # somebody else changed the optimizer in between: look at it again

    async def _try_hyperparameters(self, values: Mapping[str, Any], if_match: str | None) -> bool:
        before = self.definition
        if if_match not in (None, "*", optimizer_tag(before)):
            raise PreconditionFailed("The optimizer was changed in between; read it and try again")
        definition, pipeline = self.engine.prepare_hyperparameters(values)
        await asyncio.to_thread(rehearse, definition)

        def adopt() -> bool:
            if self.definition is not before:
                return False
            self.engine.adopt_hyperparameters(definition, pipeline)
            self._warm_dtypes = {"native"}
            return True

        return await self._change(adopt)

    # Checkpoints

    async def checkpoint(self) -> Manifest:
        """Write a checkpoint beside training; returns when it is durable."""
        return await self._checkpoints.write()

    async def remove_checkpoint(self, checkpoint_id: str) -> None:
        """Remove a checkpoint; see `ModelFolder.remove_checkpoint`."""
        await self._checkpoints.remove(checkpoint_id)

    # The end

    def stop_waiting(self) -> None:
        """Answer everyone who waits with 503 and take no more pushes; the first part of a stop."""
        self._end(ShuttingDown("The server is stopping; a push was not admitted, send it again"))

    def _end(self, error: StepwellError) -> None:
        self._is_stopping = True
        self.readers.end(error)
        self._lane.submit(lambda: self.pushes.end(error))

    async def stop(self) -> None:
        """Write a last checkpoint, unless nothing changed; mark the stop as clean; end the lane."""
        self._is_stopping = True
        if not await self._run(self._checkpoints.has_everything):
            await self.checkpoint()
        await self._lane.close()
        await self._checkpoints.mark_clean_stop()

    async def discard(self) -> None:
        """End the lane without a checkpoint: the model is being deleted."""
        name = self.definition.name
        self._end(ModelNotFound(f"The model {name!r} was deleted", model=name))
        await self._lane.close()

    def _check_running(self) -> None:
        if self._is_stopping:
            raise ShuttingDown("The model is being closed; send it again")

    async def _change(self, function: Callable[[], T]) -> T:
        """Run a change on the lane, unless the end has begun."""
        self._check_running()
        return await self._run(function)

    async def _run(self, function: Callable[[], T]) -> T:
        """Run `function` on the lane; see `Lane.run`."""
        return await self._submit(function)

    async def _submit(
        self, function: Callable[[], T], lease: Lease | None = None, is_short: bool = False
    ) -> T:
        """Run `function` on the lane, which then wakes readers who wait for what it does.

        Args:
            function: Releases the lease when it is done with it.
            lease: Of memory that it uses; lent from here on.
            is_short: See `Lane.run`.
        """

        def run() -> T:
            try:
                return function()
            finally:
                if self.readers.is_any_waiting:
                    self._lane.call_soon(self.readers.wake)

        on_taken = None if lease is None else lease.lend
        return await self._lane.run(run, is_short=is_short, on_taken=on_taken)


def optimizer_tag(definition: Definition) -> str:
    """Return the ETag of a model's optimizer configuration."""
    text = json.dumps(keras_config.serialize(definition.optimizer))
    return f'"{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"'
