"""The checkpoints of one model: written beside training, and which of them holds everything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from stepwell_core.engine import Engine
from stepwell_core.layout import Arenas
from stepwell_core.state import Snapshot

from stepwell_server.storage.checkpoint import Manifest
from stepwell_server.storage.folders import ModelFolder

log = structlog.get_logger("stepwell")


class Checkpoints:
    """Writes and removes the checkpoints of one model. Methods are called on the event loop.

    Args:
        engine: Of the model.
        folder: Where its checkpoints are.
        run: Runs a function on the model's lane.
        saved: The checkpoint that the model was read from, if any.
    """

    def __init__(
        self,
        engine: Engine,
        folder: ModelFolder,
        run: Callable[[Callable[[], Any]], Awaitable[Any]],
        saved: Manifest | None,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._run = run
        self._saved = saved
        self._lock = asyncio.Lock()

    async def write(self) -> Manifest:
        """Write a checkpoint; returns when it is durable."""
        async with self._lock:  # a later cut gets a later name
            buffers = await asyncio.to_thread(self._touched_buffers)
            snapshot: Snapshot = await self._run(lambda: self._engine.snapshot(buffers))
            manifest = await asyncio.to_thread(self._write, snapshot)
            self._saved = manifest
        log.info("checkpoint", model=self._engine.definition.name, id=manifest.id)
        return manifest

    def _write(self, snapshot: Snapshot) -> Manifest:
        """Write a cut and release it, in one thread, whatever becomes of who asked for it."""
        try:
            return self._folder.write_checkpoint(snapshot)
        finally:
            self._engine.store.release(snapshot.parameters)

    def _touched_buffers(self) -> dict[str, Arenas]:
        """Return buffers for the slots; their pages are there already, so the cut is short."""
        buffers = {}
        for name in self._engine.pipeline.slot_values:
            buffers[name] = self._engine.layout.new_arenas(None)
            for array in buffers[name].values():
                array.fill(0)
        return buffers

    async def remove(self, checkpoint_id: str) -> None:
        """Remove a checkpoint; see `ModelFolder.remove_checkpoint`."""
        async with self._lock:
            await asyncio.to_thread(self._folder.remove_checkpoint, checkpoint_id)
            if self._saved is not None and self._saved.id == checkpoint_id:
                self._saved = None  # so that a stop writes another

    def has_everything(self) -> bool:
        """Return whether the newest one has all, sessions included; on the lane, or after it."""
        saved, engine = self._saved, self._engine
        return (
            saved is not None
            and saved.counters == engine.counters
            and saved.incarnation == engine.incarnation
            and saved.definition == engine.definition
            and saved.ledger == engine.ledger.to_json()
        )

    async def mark_clean_stop(self) -> None:
        """Say that the newest checkpoint is all there was, if it is; after the lane has ended."""
        if self._saved is not None and self.has_everything():
            await asyncio.to_thread(self._folder.mark_clean_stop, self._saved.id)
