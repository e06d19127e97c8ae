"""Checkpoints of a model that runs: what fails beside them, and who goes away meanwhile."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
from stepwell_server import checkpoints
from stepwell_server.checkpoints import Schedule
from stepwell_server.storage import checkpoint
from stepwell_server.storage.journal import Journal

from tests.server.registries import created, definition, look, push, run


def fails(*arguments):
    """Stand for a disk that does not let go of a file."""
    raise OSError(5, "Input/output error")


def test_a_restore_whose_old_journal_cannot_be_removed_is_answered_as_done(tmp_path, monkeypatch):
    """The model has become it; old checkpoints go all the same."""

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        made = await model.checkpoint()
        await push(model, "a", 2)
        monkeypatch.setattr(Journal, "remove_before", fails)
        incarnation, counters = await model.restore(made.id)
        await model.checkpoint()
        monkeypatch.undo()
        found = await look(registry)
        assert found[0] == incarnation
        return counters.version, found[1:], len(model.folder.archive.ids())

    version, found, count = run(tmp_path, scenario, durability="always", schedule=Schedule(keep=2))

    assert found == (version, [3.0] * 4)
    assert count == 2


def test_a_pinned_checkpoint_that_failed_leaves_no_pin_to_the_next(tmp_path, monkeypatch):
    """Which bears its number."""

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write", fails)
            with pytest.raises(OSError, match="Input/output"):
                await model.checkpoint(pinned=True)
        await model.checkpoint()
        kept = await model.checkpoint(pinned=True)
        return model.folder.archive.pinned(), kept.id

    pinned, kept = run(tmp_path, scenario)

    assert pinned == {kept}


def test_a_checkpoint_by_itself_that_failed_is_not_tried_again_at_once(tmp_path, monkeypatch):
    """Whatever it was written for; after a while it is."""
    tries = []

    def fail(*arguments):
        tries.append(arguments)
        fails()

    async def scenario(registry):
        monkeypatch.setattr(checkpoints, "LOOK_EVERY_S", 0.005)
        await created(registry)
        model = registry.get("m")
        monkeypatch.setattr(checkpoint, "write", fail)
        await push(model, "a")
        while model.checkpoints._not_before <= model.checkpoints._saved_at:
            await asyncio.sleep(0.001)
        waits = not model.checkpoints._is_due
        first, model.checkpoints._not_before = len(tries), 0.0
        while len(tries) == first:
            await asyncio.sleep(0.001)
        monkeypatch.undo()
        return waits, first

    schedule = Schedule(every_versions=4)

    assert run(tmp_path, scenario, durability="everysec", schedule=schedule) == (True, 1)


class Gate:
    """Keeps checkpoints from being written until it is opened."""

    def __init__(self, monkeypatch):
        self.opened, self.waiting, self._write = threading.Event(), 0, checkpoint.write
        monkeypatch.setattr(checkpoint, "write", self.write)

    def write(self, *arguments):
        self.waiting += 1
        assert self.opened.wait(60)
        return self._write(*arguments)


def test_stores_that_hang_keep_nobody_waiting_but_their_checkpoints(tmp_path, monkeypatch):
    """Everybody else shares asyncio's threads, which are few."""
    count = (os.cpu_count() or 1) + 5  # one more than they are

    async def scenario(registry):
        models = []
        for number in range(count):
            model, _ = await registry.create(definition(f"m{number}"), None, exist_ok=False)
            models.append(model)
        gate = Gate(monkeypatch)
        written = [asyncio.ensure_future(model.checkpoint()) for model in models]
        while gate.waiting < count:
            await asyncio.sleep(0.001)

        others = [asyncio.to_thread(len, "abc"), models[0].checkpoints.listed()]
        found = await asyncio.wait_for(asyncio.gather(*others), 30)

        gate.opened.set()
        await asyncio.gather(*written)
        return found[0], len(found[1])

    assert run(tmp_path, scenario) == (3, 1)


@pytest.mark.parametrize("what", ["checkpoint", "restore"])
def test_who_goes_away_from_a_checkpoint_leaves_it_to_be_finished(tmp_path, monkeypatch, what):
    """No other begins before, and no version stays held."""

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        made = await model.checkpoint()
        gate = Gate(monkeypatch)
        call = model.checkpoint() if what == "checkpoint" else model.restore(made.id)
        gone = asyncio.ensure_future(call)
        while not gate.waiting:
            await asyncio.sleep(0.001)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        is_locked = model.checkpoints.lock.locked()
        gate.opened.set()
        await model.checkpoint()
        _, held = await model.readers.hold()
        holders = held.holders
        model.release(held)
        return is_locked, holders, len(model.folder.archive.ids())

    schedule = Schedule(keep=9)

    assert run(tmp_path, scenario, durability="always", schedule=schedule) == (True, 1, 4)
