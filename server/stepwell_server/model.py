"""One model as the server runs it: its engine on its lane, its folder, and everyone who waits for
it.

Methods are called on the event loop. What touches the engine goes through the lane; two things do
not: reading a version that is held, and files, which have threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from stepwell_core import keras_config
from stepwell_core.definition import Definition
from stepwell_core.engine import Counters, Engine, Push, Snapshot, Staged, State
from stepwell_core.errors import (
    PreconditionFailed,
    PushNotFound,
    ShuttingDown,
    WorkerNotFound,
)
from stepwell_core.layout import Arenas
from stepwell_core.ledger import Result, Session
from stepwell_core.store import Version

from stepwell_server.lane import Lane
from stepwell_server.storage.checkpoint import Manifest
from stepwell_server.storage.folders import ModelFolder

T = TypeVar("T")
Key = tuple[str, int, int]

log = structlog.get_logger("stepwell")


def new_incarnation() -> str:
    """Return 128 random bits in hexadecimal: the name of one uncut history of a model."""
    return secrets.token_hex(16)


class HostedModel:
    """A model that the server runs.

    Args:
        engine: Belongs to this object's lane from now on.
        folder: Where its checkpoints are.
        push_wait_s: How long a push that waits for others is kept before it is answered `waiting`.
        saved: The checkpoint that it was read from, if any.
    """

    def __init__(
        self,
        engine: Engine,
        folder: ModelFolder,
        push_wait_s: float,
        saved: Manifest | None = None,
    ) -> None:
        self.engine = engine
        self._saved = saved
        self.folder = folder
        self._loop = asyncio.get_running_loop()
        self._lane = Lane(engine.definition.name, self._loop)
        self._push_wait_s = push_wait_s
        self._waiters: dict[Key, list[asyncio.Future[Result]]] = {}  # the lane's
        self._readers: list[asyncio.Future[None]] = []  # the event loop's
        self._warm_dtypes = {"native"}
        self._is_stopping = False

    @property
    def definition(self) -> Definition:
        """What the model is now."""
        return self.engine.definition

    # Pushes

    async def push(self, push: Push) -> Result:
        """Make a push: stage, commit, publish, answer.

        Returns:
            What became of it; the outcome `waiting` if it still waits for others.

        Raises:
            StepwellError: See `Engine.stage`.
            ShuttingDown: The server stops; the push was not admitted.
        """
        self._check_running()
        await self._warm(push.gradient.dtype)
        future: asyncio.Future[Result] = self._loop.create_future()
        await self._run(lambda: self._push(push, future))
        return await self._settled(future, self._push_wait_s)

    def _push(self, push: Push, future: asyncio.Future[Result]) -> None:
        """The lane's part of `push`."""
        outcome = self.engine.stage(push)
        if isinstance(outcome, Result):
            self._lane.answer(future, outcome)
            return
        self._waiters.setdefault(push.key, []).append(future)
        if isinstance(outcome, Staged):
            self._commit(outcome)

    def _commit(self, staged: Staged) -> None:
        for push, result in self.engine.commit(staged):
            first, *others = self._waiters.pop(push.key, [None])
            if first is not None:
                self._lane.answer(first, result)
            for future in others:
                if future is not None:
                    self._lane.answer(future, replace(result, duplicate=True))

    async def wait_for_push(self, key: Key, wait_s: float) -> Result:
        """Return the result of an earlier push, waiting for it if it waits.

        Raises:
            PushNotFound: The session neither stores nor awaits such a push.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        await self._run(lambda: self._find_push(key, future))
        return await self._settled(future, min(wait_s, self._push_wait_s))

    def _find_push(self, key: Key, future: asyncio.Future[Result]) -> None:
        worker, epoch, sequence = key
        session = self.engine.ledger.find(worker, epoch)
        if sequence <= session.last_sequence:
            result = self.engine.ledger.check(*key)
            assert result is not None, "an admitted push has a result"
            self._lane.answer(future, result)
        elif any(push.key == key for push in self.engine.policy.waiting):
            self._waiters.setdefault(key, []).append(future)
        else:
            raise PushNotFound(
                f"Worker {worker!r} has made no push {sequence} in session {epoch}; send it again",
                expected=session.last_sequence + 1,
            )

    async def _settled(self, future: asyncio.Future[Result], wait_s: float) -> Result:
        done, _ = await asyncio.wait([future], timeout=wait_s)
        if done:
            return future.result()
        counters = self.engine.counters
        return Result("waiting", counters.version, counters.parameters_version)

    async def _warm(self, dtype: str) -> None:
        """Compile for a payload dtype that has not come yet, off the lane."""
        if dtype not in self._warm_dtypes:
            await asyncio.to_thread(self.engine.pipeline.warm, dtype)
            self._warm_dtypes.add(dtype)

    # Reading

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[Version]:
        """Hold the current version while the block runs; waits for a step that is under way in
        place.

        Raises:
            VersionsExhausted: Slow readers hold every buffer that can be spared.
        """
        version = await self.hold()
        try:
            yield version
        finally:
            self.release(version)

    async def hold(self) -> Version:
        """Hold the current version; the caller gives it to `release`."""
        while (version := self.engine.store.hold()) is None:
            future: asyncio.Future[None] = self._loop.create_future()
            self._readers.append(future)
            # Between the two looks the step may have ended, and with it the wake-up call.
            version = self.engine.store.hold()
            if version is not None:
                return version
            await future
        return version

    def release(self, version: Version) -> None:
        """Give back what `hold` returned."""
        self.engine.store.release(version)

    def _wake_readers(self) -> None:
        readers, self._readers = self._readers, []
        for future in readers:
            if not future.done():
                future.set_result(None)

    async def slot(self, name: str) -> tuple[Counters, Arenas]:
        """Return a copy of a slot, and the counters that belong to it."""
        return await self._run(lambda: (self.engine.counters, self.engine.slot(name)))

    # Sessions

    async def open_session(self, worker: str) -> tuple[Session, Session | None, Counters]:
        """Open a session; returns it, the one before, and the model's counters."""
        self._check_running()

        def open_session() -> tuple[Session, Session | None, Counters]:
            session, previous = self.engine.open_session(worker)
            self._forget_waiters(worker)
            return session, previous, self.engine.counters

        return await self._run(open_session)

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
            self._forget_waiters(worker)
            if staged is not None:
                self._commit(staged)

        await self._run(close)

    async def sessions(self) -> list[Session]:
        """Return copies of all sessions, in the order in which they were opened."""
        return await self._run(
            lambda: [replace(session) for session in self.engine.ledger.sessions.values()]
        )

    def _forget_waiters(self, worker: str | None = None) -> None:
        """Answer those who wait for pushes that were forgotten: they may send them again."""
        waiting = {push.key for push in self.engine.policy.waiting}
        for key in [key for key in self._waiters if key not in waiting]:
            if worker is not None and key[0] != worker:
                continue
            for future in self._waiters.pop(key):
                self._lane.refuse(future, ShuttingDown("The push waited, but not any more; resend it"))

    # Changes by an administrator

    async def finalize(self) -> Counters:
        """See `Engine.finalize`."""
        return await self._run(self.engine.finalize)

    async def overwrite(self, parameters: Arenas) -> Counters:
        """See `Engine.overwrite`; a checkpoint is written before this returns."""

        def overwrite() -> Counters:
            counters = self.engine.overwrite(parameters, new_incarnation())
            self._forget_waiters()
            return counters

        counters = await self._run(overwrite)
        await self.checkpoint()
        return counters

    async def restore(self, state: State) -> Counters:
        """See `Engine.restore`; a checkpoint is written before this returns."""

        def restore() -> Counters:
            counters = self.engine.restore(state, new_incarnation())
            self._forget_waiters()
            return counters

        counters = await self._run(restore)
        self._warm_dtypes = set()
        await self._warm("native")
        await self.checkpoint()
        return counters

    async def set_hyperparameters(self, values: Mapping[str, Any], if_match: str | None) -> None:
        """Change hyperparameters from the next step on.

        Raises:
            PreconditionFailed: The optimizer is not the one that `if_match` names.
            InvalidArgument: See `Engine.prepare_hyperparameters`.
        """
        before = self.definition
        if if_match is not None and if_match != optimizer_tag(before):
            raise PreconditionFailed("The optimizer was changed in between; read it and try again")
        definition, pipeline = await asyncio.to_thread(self.engine.prepare_hyperparameters, values)

        def adopt() -> None:
            if self.definition is not before:
                raise PreconditionFailed(
                    "The optimizer was changed in between; read it and try again"
                )
            self.engine.adopt_hyperparameters(definition, pipeline)

        await self._run(adopt)
        self._warm_dtypes = {"native"}

    # Checkpoints

    async def checkpoint(self) -> Manifest:
        """Write a checkpoint beside training; returns when it is durable."""
        buffers = await asyncio.to_thread(self._touched_buffers)
        snapshot: Snapshot = await self._run(lambda: self.engine.snapshot(buffers))
        try:
            manifest = await asyncio.to_thread(self.folder.write_checkpoint, snapshot)
        finally:
            self.release(snapshot.parameters)
        self._saved = manifest
        log.info("checkpoint", model=self.definition.name, id=manifest.id)
        return manifest

    def _touched_buffers(self) -> dict[str, Arenas]:
        """Return buffers for a copy of the slots whose pages are there already, so the cut is
        short.
        """
        buffers = {}
        for name in self.engine.pipeline.slot_values:
            buffers[name] = self.engine.layout.new_arenas(None)
            for array in buffers[name].values():
                array.fill(0)
        return buffers

    # The end

    def stop_waiting(self) -> None:
        """Answer everyone who waits with 503 and take no more pushes; the first part of a stop."""
        self._is_stopping = True
        self._lane.submit(self._fail_waiters)

    def _fail_waiters(self) -> None:
        waiters, self._waiters = self._waiters, {}
        error = ShuttingDown("The server is stopping; the push was not admitted, send it again")
        for future in [future for futures in waiters.values() for future in futures]:
            self._lane.refuse(future, error)

    async def stop(self) -> None:
        """Write a last checkpoint, unless nothing changed; mark the stop as clean; end the lane."""
        if not await self._run(self._is_saved):
            await self.checkpoint()
        await self._lane.close()
        assert self._saved is not None, "a model has a checkpoint from the beginning"
        await asyncio.to_thread(self.folder.mark_clean_stop, self._saved.id)

    def _is_saved(self) -> bool:
        """Whether the newest checkpoint holds everything, sessions included."""
        saved, engine = self._saved, self.engine
        return (
            saved is not None
            and saved.counters == engine.counters
            and saved.incarnation == engine.incarnation
            and saved.definition == engine.definition
            and saved.ledger == engine.ledger.to_json()
        )

    async def discard(self) -> None:
        """End the lane without a checkpoint: the model is being deleted."""
        self.stop_waiting()
        await self._lane.close()

    def _check_running(self) -> None:
        if self._is_stopping:
            raise ShuttingDown("The server is stopping; send it again")

    async def _run(self, function: Callable[[], T]) -> T:
        """Run `function` on the lane, which then wakes readers who found a step under way."""

        def run() -> T:
            try:
                return function()
            finally:
                if self._readers:
                    self._lane.call_soon(self._wake_readers)

        return await self._lane.run(run)


def optimizer_tag(definition: Definition) -> str:
    """Return the ETag of a model's optimizer configuration."""
    text = json.dumps(keras_config.serialize(definition.optimizer))
    return f'"{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"'
