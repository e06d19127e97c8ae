"""The checkpoints of one model: written beside training, kept, and which of them holds everything.

A checkpoint begins with a *cut* on the lane: the slots are copied, the parameters' version is held,
and the journal begins a new segment; the lane then goes on. Once the checkpoint is whole on the
disk, and was read back, the journal before the cut is let go of.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

import structlog
from stepwell_core.engine import Engine
from stepwell_core.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    StepwellError,
    StoreFailed,
)
from stepwell_core.layout import Arenas
from stepwell_core.state import Snapshot, State, slot_names

from stepwell_server import failpoints
from stepwell_server.recorder import Recorder
from stepwell_server.storage import checkpoint, ledger_text
from stepwell_server.storage.archive import CheckpointArchive, version_of
from stepwell_server.storage.manifest import Manifest
from stepwell_server.tallies import CheckpointTally

LOOK_EVERY_S = 0.5
"""How often it is asked whether it is time for a checkpoint."""

PAUSE_AFTER_FAILURE_S = 10.0
"""How long none is written by itself after one that failed: each begins a segment of the journal,
and may upload everything."""

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger("stepwell")


@dataclass(frozen=True)
class Schedule:
    """When a checkpoint is written by itself, and how many are kept.

    Attributes:
        every_versions: After so many versions; None means never for that reason.
        every_s: After so many seconds in which something changed; None means never.
        keep: The newest whole ones that are not pinned.
    """

    every_versions: int | None = None
    every_s: float | None = None
    keep: int = 3


@dataclass
class Progress:
    """How far a checkpoint is that is being written or read.

    Attributes:
        phase: "writing", "verifying" what was written or what somebody asks about, or "reading" for
            a restore or a fork.
        done_bytes: Of this phase.
        bytes: Of the phase in all.
    """

    phase: str = "writing"
    done_bytes: int = 0
    bytes: int = 0


class Checkpoints:
    """The checkpoints of one model. Methods are called on the event loop unless they say otherwise.

    Args:
        engine: Of the model.
        archive: Where they are.
        recorder: Of the model; cut when a checkpoint is whole.
        run: Runs a function on the model's lane.
        schedule: When one is written by itself.
        saved: The checkpoint that the model was read from, or written to at its creation.
    """

    def __init__(
        self,
        engine: Engine,
        archive: CheckpointArchive,
        recorder: Recorder,
        run: Callable[[Callable[[], Any]], Awaitable[Any]],
        schedule: Schedule,
        saved: Manifest | None,
    ) -> None:
        self.lock = asyncio.Lock()  # a later cut gets a later name
        self._engine = engine
        self._archive = archive
        self._recorder = recorder
        self._run = run
        self._schedule = schedule
        self._saved = saved
        self._saved_at = time.monotonic()
        self._not_before = self._saved_at  # is none written by itself
        self._writing: Progress | None = None
        self._reading: Progress | None = None  # of several, whichever moved last
        self.on_written: Callable[[Manifest], None] = _do_nothing  # called for each, by `write`
        self.tally = CheckpointTally()
        # One that writes, and one for who asks what there is.
        self._threads = ThreadPoolExecutor(2, f"checkpoints-{engine.definition.name}")
        self._alone: asyncio.Task[Any] | None = None  # held: the event loop does not
        self._automatic = asyncio.create_task(self._write_by_itself())

    @property
    def writing(self) -> dict[str, Any] | None:
        """How far the one is that is being written; None if there is none."""
        return None if self._writing is None else asdict(self._writing)

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far the one is that is being written, or else read; None if there is neither."""
        found = self._writing or self._reading
        return None if found is None else asdict(found)

    @property
    def saved_id(self) -> str | None:
        """The name of the newest one that was written or read."""
        return None if self._saved is None else self._saved.id

    @property
    def saved_created(self) -> str | None:
        """When that one was made: UTC, ISO 8601."""
        return None if self._saved is None else self._saved.created

    @property
    def saved_age_s(self) -> float | None:
        """How old that one is, in seconds of this machine's clock."""
        created = self.saved_created
        if created is None:
            return None
        return max(0.0, time.time() - datetime.fromisoformat(created).timestamp())

    async def write(self, *, pinned: bool = False, is_last: bool = False) -> Manifest:
        """Write a checkpoint; returns when it is durable and was read back.

        Args:
            pinned: Whether it is kept for ever.
            is_last: Nothing is changed after it. So it may be written where the journal failed.
        """
        manifest = await self.alone(lambda: self._write_now(pinned=pinned, is_last=is_last))
        self.on_written(manifest)
        log.info("checkpoint", model=self._engine.definition.name, id=manifest.id)
        return manifest

    async def alone(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do under `lock` what must not be left half done, even if the caller goes away meanwhile.

        Once the lock is there `work` begins before anything else can happen to the caller.
        """
        await self.lock.acquire()
        self._alone = asyncio.create_task(self._finish(work))
        return await asyncio.shield(self._alone)

    async def _finish(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await work()
        finally:
            self.lock.release()

    async def _write_now(self, *, pinned: bool, is_last: bool) -> Manifest:
        buffers = await self._in_thread(self._touched_buffers)
        snapshot, number = await self._run(lambda: self._cut(buffers, is_last=is_last))
        manifest = await self._in_thread(self._write, snapshot, number, pinned=pinned)
        await self.note(manifest)
        return manifest

    async def _in_thread(
        self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """Run what waits for a disk or a store; a store that hangs keeps nobody else waiting."""
        call = functools.partial(function, *arguments, **named)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _touched_buffers(self) -> dict[str, Arenas]:
        """Return buffers for the slots; their pages are there already, so the cut is short."""
        buffers = {}
        for name in slot_names(self._engine.definition, self._engine.pipeline):
            buffers[name] = self._engine.layout.new_arenas(None)
            for array in buffers[name].values():
                array.fill(0)
        return buffers

    def _cut(self, buffers: dict[str, Arenas], *, is_last: bool) -> tuple[Snapshot, int]:
        """The lane's part of a checkpoint; of a half-made change none is made.

        Raises:
            ModelReadOnly: What is on the disk is all there is to go on from.
        """
        if is_last:
            number = self._recorder.finish()
        else:
            self._recorder.check()
            number = self._recorder.rotate()
        snapshot = self._engine.snapshot(buffers)
        failpoints.reach("checkpoint.cut")
        return snapshot, number

    def _write(self, snapshot: Snapshot, number: int, *, pinned: bool) -> Manifest:
        """Write a cut and release it."""
        try:
            return self.save(snapshot, number, pinned=pinned)
        finally:
            self._engine.store.release(snapshot.parameters)

    def save(self, snapshot: Snapshot, number: int, *, pinned: bool = False) -> Manifest:
        """Write a snapshot; blocks for as long as the disk takes. On any thread, under `lock`."""
        self._writing = Progress()
        began = time.monotonic()
        try:
            manifest = self._archive.write(
                snapshot, number, pinned=pinned, progress=self._note_progress
            )
        except BaseException:
            self.tally.failures += 1
            raise
        finally:
            self._writing = None
        self.tally.seconds.note(time.monotonic() - began)
        return manifest

    def _note_progress(self, phase: str, done_bytes: int, nbytes: int) -> None:
        self._writing = Progress(phase, done_bytes, nbytes)

    async def note(self, manifest: Manifest) -> None:
        """Let go of what a new whole checkpoint has made unnecessary; under `lock`.

        What cannot be removed is told in the log, and tried again after the next one: the
        checkpoint, and the history that it may begin, stand.
        """
        failpoints.reach("checkpoint.verified")
        self._saved, self._saved_at = manifest, time.monotonic()
        try:
            await self._in_thread(self._recorder.remove_before, manifest.journal_number)
        except (OSError, StepwellError) as error:  # the checkpoint is whole: nothing needs to go
            log.warning("journal_not_removed", model=self._engine.definition.name, exc_info=error)
        await self._retain()

    async def _retain(self) -> None:
        try:
            removed = await self._in_thread(self._archive.retain, self._schedule.keep)
        except (OSError, StepwellError) as error:  # the new one is whole: that is what matters
            log.warning("checkpoints_not_removed", reason=type(error).__name__)
        else:
            if removed:
                log.info("checkpoints_removed", model=self._engine.definition.name, ids=removed)

    # By itself

    async def _write_by_itself(self) -> None:
        """Write a checkpoint whenever it is time for one."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._is_due:
                continue
            try:
                await self.write()
            except Exception as error:
                log.error("checkpoint_failed", model=self._engine.definition.name, exc_info=error)
                self._not_before = time.monotonic() + PAUSE_AFTER_FAILURE_S

    @property
    def _is_due(self) -> bool:
        if time.monotonic() < self._not_before:
            return False
        saved, schedule = self._saved, self._schedule
        version = self._engine.counters.version
        new = version - (0 if saved is None else saved.counters.version)
        age_s = time.monotonic() - self._saved_at
        return (
            (self._recorder.is_large and age_s > LOOK_EVERY_S)
            or (schedule.every_versions is not None and new >= schedule.every_versions)
            or (schedule.every_s is not None and new != 0 and age_s >= schedule.every_s)
        )

    async def end(self) -> None:
        """Write none by itself any more; one that is being written is finished."""
        async with self.lock:
            self._automatic.cancel()
        await asyncio.gather(self._automatic, return_exceptions=True)

    def close(self) -> None:
        """Let go of the threads; the last thing that is done, after the model's lane has ended."""
        self._threads.shutdown(wait=False)

    # What there is

    async def listed(self) -> list[dict[str, Any]]:
        """Return what lists show of each, oldest first; one that cannot be read says why."""
        return await self._in_thread(self._list)

    def _list(self) -> list[dict[str, Any]]:
        pinned = self._archive.pinned()
        found = []
        for checkpoint_id in self._archive.ids():
            try:
                summary = self._archive.manifest(checkpoint_id).summary()
            except CheckpointNotFound:
                continue  # removed since `ids` was asked
            except (CheckpointInvalid, StoreFailed) as error:
                version = version_of(checkpoint_id)
                summary = {"id": checkpoint_id, "version": version, "invalid": error.message}
            found.append({**summary, "pinned": checkpoint_id in pinned})
        return found

    async def manifest(self, checkpoint_id: str) -> Manifest:
        """Return what a checkpoint says about itself; the tensors are not read."""
        return await self._in_thread(self._archive.manifest, checkpoint_id)

    async def open_file(self, checkpoint_id: str, name: str) -> tuple[int, Iterator[memoryview]]:
        """Return the bytes of a file and its content; see `CheckpointArchive.open_file`."""
        return await self._in_thread(self._archive.open_file, checkpoint_id, name)

    async def read(self, checkpoint_id: str) -> tuple[Manifest, State]:
        """Return a checkpoint, verified."""
        return await self._read(self._archive.read, checkpoint_id)

    async def verify(self, checkpoint_id: str) -> Manifest:
        """Read a checkpoint whole and check every tensor against its hash.

        Raises:
            CheckpointNotFound, CheckpointInvalid: There is none, or it is damaged.
        """
        return await self._read(self._archive.verify, checkpoint_id)

    async def _read(self, read: Callable[[str, checkpoint.Progress], T], checkpoint_id: str) -> T:
        """Read a checkpoint whole; how far that is, `progress` says meanwhile."""

        def note(phase: str, done_bytes: int, nbytes: int) -> None:
            self._reading = Progress(phase, done_bytes, nbytes)

        def noted() -> T:
            try:
                return read(checkpoint_id, note)
            finally:  # in the thread, which goes on when the caller is gone
                self._reading = None

        return await self._in_thread(noted)

    async def pin(self, checkpoint_id: str, pinned: bool) -> None:
        """Keep a checkpoint for ever, or no longer."""
        async with self.lock:
            await self._in_thread(self._archive.pin, checkpoint_id, pinned)

    async def remove(self, checkpoint_id: str) -> None:
        """Remove a checkpoint; see `CheckpointArchive.remove`."""
        async with self.lock:
            await self._in_thread(self._archive.remove, checkpoint_id)

    # Does the newest one hold everything?

    def has_everything(self) -> bool:
        """Return whether the newest one has all, sessions included; on the lane, or after it."""
        saved, engine = self._saved, self._engine
        return (
            saved is not None
            and saved.counters == engine.counters
            and saved.incarnation == engine.incarnation
            and saved.definition == engine.definition
            and saved.gathered == engine.gathered()
            and saved.ledger_hash == ledger_text.hash_of(ledger_text.encoded(engine.ledger))
        )

    @property
    def newest_id(self) -> str | None:
        """The name of the newest one if it holds everything; after the lane has ended."""
        return self._saved.id if self._saved is not None and self.has_everything() else None


def _do_nothing(manifest: Manifest) -> None:
    """Tell nobody of a checkpoint."""
