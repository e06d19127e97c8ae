"""One model as the server runs it: its engine on its lane, its folder, and who waits for it.

Methods are called on the event loop. What touches the engine goes through the lane; two things do
not: reading a version that is held, and files, which have threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import structlog
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import (
    ModelNotFound,
    ModelReadOnly,
    ShuttingDown,
    StepwellError,
)
from stepwell_core.layout import Arenas
from stepwell_core.push import Push
from stepwell_core.record import Finalized
from stepwell_core.session import Result
from stepwell_core.state import Counters
from stepwell_core.store import Version
from stepwell_core.succession import replaced, restored

from stepwell_server.checkpoints import Checkpoints, Schedule
from stepwell_server.descriptions import describe
from stepwell_server.history import (
    CheckpointWritten,
    History,
    Started,
    StepRecorder,
    events,
)
from stepwell_server.lane import Lane
from stepwell_server.leases import Lease, Part
from stepwell_server.pulls import Pulls
from stepwell_server.pushes import Pushes
from stepwell_server.readers import Readers
from stepwell_server.recorder import Recorder
from stepwell_server.recovery import Recovered
from stepwell_server.rehearsals import NATIVE, Rehearsals
from stepwell_server.rules import Rules
from stepwell_server.sessions import Sessions
from stepwell_server.shared_memory import RegionArenas, shared_arenas
from stepwell_server.storage.folders import ModelFolder
from stepwell_server.storage.manifest import Manifest
from stepwell_server.succession import Succession

T = TypeVar("T")

log = structlog.get_logger("stepwell")


class HostedModel:
    """A model that the server runs.

    Args:
        engine: Belongs to this object's lane from now on.
        folder: Where its checkpoints and its journal are.
        recorder: Writes its changes down.
        push_wait_s: How long a push that waits for others is kept before it is answered `waiting`.
        part: Of the staging, for its pushes.
        reserve: Takes from the staging what another mode needs, instead of a part.
        schedule: When checkpoints are written by themselves.
        history: Is told what happens; closed with the model.
        saved: The checkpoint that it was read from or written to.
        recovered: How it came back at the server's start; None for a new model.
    """

    def __init__(
        self,
        engine: Engine,
        folder: ModelFolder,
        recorder: Recorder,
        push_wait_s: float,
        part: Part,
        reserve: Callable[[Definition, Part], Part],
        schedule: Schedule,
        history: History,
        saved: Manifest | None = None,
        recovered: Recovered | None = None,
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.recorder = recorder
        self.part = part
        self.recovered = recovered
        self.history = history
        self.pulls = Pulls()
        self._loop = asyncio.get_running_loop()
        self._lane = Lane(engine.definition.name, self._loop)
        self.pushes = Pushes(
            engine,
            recorder,
            self._lane,
            self._submit,
            self.check_running,
            push_wait_s,
            StepRecorder(engine, history),
        )
        self.sessions = Sessions(engine, recorder, self.pushes, history, self._change)
        self.readers = Readers(engine)
        self.rehearsals = Rehearsals(engine)
        self.checkpoints = Checkpoints(engine, folder.archive, recorder, self._run, schedule, saved)
        self.checkpoints.on_written = self._note_checkpoint
        self.rules = Rules(self, self._change, reserve)
        self._succession = Succession(self, self._submit)
        self._is_stopping = False
        history.add(Started(engine.counters.version, engine.incarnation))

    def _note_checkpoint(self, manifest: Manifest) -> None:
        self.history.add(CheckpointWritten(manifest.counters.version, manifest.id))

    @property
    def definition(self) -> Definition:
        """What the model is now."""
        return self.engine.definition

    async def push(self, push: Push, lease: Lease | None = None) -> Result:
        """Make a push; see `Pushes.push`. Compiles before, if such a one has not come yet."""
        self.check_running()
        if not self.rehearsals.knows(push.gradient.dtype, push.kind):
            with self.sessions.sending(*push.key[:2]):  # its lease does not end meanwhile
                await self.rehearsals.for_push(push.gradient.dtype, push.kind)
        nbytes = sum(a.nbytes for a in push.gradient.arenas.values())
        self.pushes.tally.received(push.worker, nbytes)
        pushed = self.pushes.push(push, lease)
        worker, epoch = push.key[:2]
        del push  # while it waits nobody holds its gradient but who will read it
        result = await pushed
        if result.outcome != "waiting":
            self.sessions.settled(worker, epoch)
        return result

    # Reading

    async def read(self, function: Callable[[Engine], T]) -> T:
        """Return `function` of the engine, which may not change it, between two changes.

        It must return copies, or values that never change.
        """
        return await self._run(lambda: function(self.engine))

    async def describe(self) -> dict[str, Any]:
        """Return what `GET /v1/models/{model}` says."""
        return {**await self.read(describe), "durability": self._durability()}

    def _durability(self) -> dict[str, Any]:
        recorder = self.recorder
        return {
            "mode": recorder.durability,
            "journal_bytes": recorder.nbytes,
            "read_only": recorder.failure,
            "checkpoint": self.checkpoints.saved_id,
            "checkpoint_created": self.checkpoints.saved_created,
            "writing": self.checkpoints.writing,
            "recovered": self.recovered and self.recovered.to_json(),
        }

    async def hold(self) -> tuple[str, Version]:
        """Hold the current version, cutting off slow readers if it has to be; see `Readers.hold`.

        Raises:
            VersionsExhausted: Readers hold every buffer that can be spared, and none is slow.
        """
        held = await self.pulls.hold(self.readers.hold)
        self.pushes.tally.pulls += 1
        return held

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

    # Changes by an administrator

    async def finalize(self) -> Counters:
        """See `Engine.finalize`."""

        def finalize() -> Counters:
            self.engine.check_finalize()
            self.recorder.keep(Finalized())
            with self.recorder.making():
                counters = self.engine.finalize()
            self.history.add(events.Finalized(counters.version))
            self.pushes.forget()
            return counters

        return await self._change(finalize)

    async def overwrite(
        self, parameters: Arenas, lease: Lease | None = None
    ) -> tuple[str, Counters]:
        """Replace the parameters and leave slots and sessions; see `Succession`.

        Args:
            parameters: Copied.
            lease: Of their memory, if that is staged. Lent from here until they are copied.
        """
        return await self._succession.begin(
            lambda present: replaced(present, parameters), "overwrite", lease=lease
        )

    async def restore(self, checkpoint_id: str) -> tuple[str, Counters]:
        """Go back to a checkpoint: parameters, slots, counters and sessions; all or nothing.

        Raises:
            CheckpointNotFound, CheckpointInvalid: There is none, or it is damaged.
        """
        _, past = await self.checkpoints.read(checkpoint_id)
        async with self.rules.room_for(past.definition):
            begun = await self._succession.begin(
                lambda present: restored(present, past), "restore", checkpoint_id
            )
        self.rehearsals.begin_anew()
        await self.rehearsals.for_push(*NATIVE)
        return begun

    async def import_state(
        self,
        parameters: Arenas | None,
        slots: Mapping[str, Arenas] | None,
        iterations: int | None,
        lease: Lease | None = None,
    ) -> tuple[str, Counters]:
        """Take over what was trained elsewhere; see `succession.replaced` and `Succession`.

        Args:
            parameters: Copied; None leaves them.
            slots: All of the optimizer's; the model's from now on. None leaves them.
            iterations: Keras's raw counter; None leaves it.
            lease: Of their memory, if that is staged; lent from here until the end.
        """
        return await self._succession.begin(
            lambda present: replaced(present, parameters, slots, iterations), "import", lease=lease
        )

    async def checkpoint(self, *, pinned: bool = False, is_last: bool = False) -> Manifest:
        """Write a checkpoint beside training; see `Checkpoints.write`."""
        return await self.checkpoints.write(pinned=pinned, is_last=is_last)

    # The end

    def stop_waiting(self) -> None:
        """Answer everyone who waits with 503 and take no more pushes; the first part of a stop."""
        self._end(ShuttingDown("The server is stopping; a push was not admitted, send it again"))

    def _end(self, error: StepwellError) -> None:
        self._is_stopping = True
        self.readers.end(error)
        self.history.end()
        self._lane.submit(lambda: self.pushes.end(error))

    async def stop(self) -> None:
        """Write a last checkpoint, unless nothing changed; mark the stop as clean; end the lane.

        If the checkpoint cannot be written the journal is synced and ended all the same.

        Raises:
            Exception: The checkpoint, or the journal's last sync, failed.
        """
        self._is_stopping = True
        await self.checkpoints.end()
        await self.sessions.end()
        try:
            # Where a change was recorded and not made, what is on the disk has to do.
            is_right = not self.recorder.has_given_up
            if is_right and not await self._run(self._is_saved):
                await self.checkpoint(is_last=True)
        finally:
            await self._close()
        newest = self.checkpoints.newest_id
        if newest is not None and is_right:
            await asyncio.to_thread(self.folder.mark_clean_stop, newest)

    def _is_saved(self) -> bool:
        """Whether no start needs the journal, which may have what was refused after it failed."""
        return self.recorder.failure is None and self.checkpoints.has_everything()

    async def discard(self) -> None:
        """End the lane without a checkpoint: the model is being deleted."""
        name = self.definition.name
        self._end(ModelNotFound(f"The model {name!r} was deleted", model=name))
        await self.checkpoints.end()
        await self.sessions.end()
        try:
            await self._close()
        except ModelReadOnly as error:  # what could not be written is not wanted any more
            log.warning("journal_not_closed", model=name, reason=error.message)

    async def _close(self) -> None:
        """End the lane, then close what it writes to, whatever fails of it."""
        async with contextlib.AsyncExitStack() as closing:
            closing.push_async_callback(asyncio.to_thread, self.history.close)
            closing.push_async_callback(asyncio.to_thread, self.recorder.close)
            await self._lane.close()

    def check_running(self) -> None:
        """Refuse changes once the end has begun.

        Raises:
            ShuttingDown: It has.
        """
        if self._is_stopping:
            raise ShuttingDown("The model is being closed; send it again")

    async def _change(self, function: Callable[[], T]) -> T:
        """Run a change on the lane, unless the end has begun."""
        self.check_running()
        return await self._run(function)

    async def _run(self, function: Callable[[], T]) -> T:
        """Run `function` on the lane; see `Lane.run`."""
        return await self._submit(function)

    async def _submit(
        self,
        function: Callable[[], T],
        lease: Lease | None = None,
        *,
        is_short: bool = False,
        is_grouped: bool = False,
    ) -> T:
        """Run `function` on the lane, which then wakes readers who wait for what it does.

        Args:
            function: Releases the lease when it is done with it.
            lease: Of memory that it uses; lent from here on.
            is_short: See `Lane.run`.
            is_grouped: See `Lane.run`.
        """

        def run() -> T:
            try:
                return function()
            finally:
                if self.readers.is_any_waiting:
                    self._lane.call_soon(self.readers.wake)

        on_taken = None if lease is None else lease.lend
        return await self._lane.run(
            run, is_short=is_short, is_grouped=is_grouped, on_taken=on_taken
        )
