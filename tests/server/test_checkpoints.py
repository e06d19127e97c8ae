"""Checkpoints of a model that runs: what fails beside them, and who goes away meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from stepwell_server import checkpoints
from stepwell_server.checkpoints import Schedule
from stepwell_server.storage import checkpoint
from stepwell_server.storage.journal import Journal

from tests.server.registries import created, look, push, run


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
