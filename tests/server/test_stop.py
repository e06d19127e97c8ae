"""The end of a model: whatever fails, what was answered is there at the next start, or is told."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path

import pytest
from stepwell_core.errors import JournalInvalid, ModelReadOnly
from stepwell_core.push import Push
from stepwell_server.storage import disk
from stepwell_server.storage.archive import CheckpointArchive
from stepwell_server.storage.journal import Journal

from tests.server.registries import created, damage_newest_checkpoint, look, run, tick
from tests.server.storage.forgetful_disk import ForgetfulDisk


class LosingDisk(disk.System):
    """A disk whose next write-back fails, as on Linux: told once, and the rest is gone."""

    def __init__(self) -> None:
        self.is_failing = False
        self._synced: dict[str, bytes] = {}

    def sync_content(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if self.is_failing:
            self.is_failing = False
            Path(path).write_bytes(self._synced[path])
            raise OSError(errno.EIO, "Input/output error")
        super().sync_content(descriptor)
        self._synced[path] = Path(path).read_bytes()


@pytest.fixture
def losing(monkeypatch):
    """A disk that loses what it is told to sync next."""
    double = LosingDisk()
    monkeypatch.setattr(disk, "system", double)
    return double


def refuse(*arguments, **options):
    """Have no room."""
    raise OSError(errno.ENOSPC, "No space left on device")


async def pushed(registry, sequence):
    """Push once more; returns the version."""
    model = registry.get("m")
    epoch = model.engine.ledger.sessions["w0"].epoch
    result = await model.push(Push("w0", epoch, sequence, model.engine.incarnation, tick()))
    return result.version, result.duplicate


def with_a_lost_sync(losing):
    """Return a scenario: three pushes are on the disk, two are answered and lost by it."""

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        await asyncio.to_thread(model.recorder.sync)
        await pushed(registry, 3)
        await pushed(registry, 4)
        losing.is_failing = True
        with pytest.raises(ModelReadOnly):
            await asyncio.to_thread(model.recorder.sync)
        return await look(registry)

    return scenario


def test_what_a_failed_sync_lost_is_told_at_the_next_start(tmp_path, losing):
    """Under `everysec` it was answered, and the machine was not started since."""
    before = run(tmp_path, with_a_lost_sync(losing), is_clean=False, durability="everysec")

    after = run(tmp_path, look, durability="everysec")

    assert (before[1], after[1]) == (5, 3)
    assert after[0] != before[0]


class DyingDisk(ForgetfulDisk):
    """A disk that takes nothing for good any more: no bytes, no names."""

    is_dead = False

    def sync_content(self, descriptor: int) -> None:
        self.sync(descriptor)

    def sync(self, descriptor: int) -> None:
        if self.is_dead:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(descriptor)


class Everything(random.Random):
    """A crash that takes all that can be taken."""

    def choice(self, options):
        return min(options)


def test_a_disk_that_forgets_the_mark_too_does_not_hide_the_loss(tmp_path, monkeypatch):
    """There is one in memory, for as long as the machine runs."""
    dying = DyingDisk(tmp_path)
    monkeypatch.setattr(disk, "system", dying)

    async def lose(registry):
        await created(registry)
        model = registry.get("m")
        await asyncio.to_thread(model.recorder.sync)
        await pushed(registry, 3)
        dying.is_dead = True
        with pytest.raises(ModelReadOnly):
            await asyncio.to_thread(model.recorder.sync)
        return await look(registry)

    before = run(tmp_path, lose, is_clean=False, durability="everysec")
    dying.is_dead = False
    dying.crash(Everything(0))  # it is mounted again; the machine still runs
    after = run(tmp_path, look, durability="everysec")

    assert (before[1], after[1]) == (4, 3)
    assert after[0] != before[0]


def test_a_stop_after_a_failed_sync_saves_what_the_journal_has_not(tmp_path, losing):
    """The model is whole, whatever its journal is; so is the history then."""
    before = run(tmp_path, with_a_lost_sync(losing), durability="everysec")

    async def go_on(registry):
        return await look(registry), await pushed(registry, 4), await pushed(registry, 5)

    after, again, following = run(tmp_path, go_on, is_clean=False, durability="everysec")

    assert after == before
    assert (again, following) == ((5, True), (6, False))
    assert run(tmp_path, look, durability="everysec")[:2] == (before[0], 6)


def test_nobody_reads_on_over_a_journal_that_failed(tmp_path, losing):
    """If the checkpoint of such a stop is damaged, what came after it does not join the ones
    before, which lack what was lost. It is a refusal, for what is there is no one's history."""
    run(tmp_path, with_a_lost_sync(losing), durability="everysec")

    async def go_on(registry):
        return await pushed(registry, 5)

    run(tmp_path, go_on, is_clean=False, durability="everysec")
    damage_newest_checkpoint(tmp_path)

    with pytest.raises(JournalInvalid, match="record 4 is missing"):
        run(tmp_path, look, durability="everysec")


def test_a_push_that_could_not_be_synced_is_not_made_by_a_later_start(tmp_path, losing):
    """Under `always` it was refused; after the stop it is sent again, and made once."""

    async def refused(registry):
        await created(registry)
        losing.is_failing = True
        with pytest.raises(ModelReadOnly):
            await pushed(registry, 3)
        return await look(registry)

    async def go_on(registry):
        return await look(registry), await pushed(registry, 3)

    before = run(tmp_path, refused, durability="always")
    after, again = run(tmp_path, go_on, is_clean=False, durability="always")

    assert after == before
    assert again == (4, False)
    assert run(tmp_path, look, durability="always")[:2] == (before[0], 4)


@pytest.mark.parametrize("durability", ["memory", "everysec", "always"])
def test_a_last_checkpoint_that_fails_leaves_a_journal_that_is_whole(
    tmp_path, monkeypatch, durability
):
    """The stop says so; the journal is synced and closed, and has everything. Without one the model
    goes back to the checkpoint before, and everyone is told."""
    synced, real = [], Journal.close

    def close(journal):
        real(journal)
        synced.append(journal.failure is None and journal._durable == journal.next_number)

    monkeypatch.setattr(Journal, "close", close)
    with monkeypatch.context() as patch:

        async def fill(registry):
            before = await created(registry)
            patch.setattr(CheckpointArchive, "write", refuse)
            seen.append(before)

        seen = []
        with pytest.raises(OSError, match="No space"):
            run(tmp_path, fill, durability=durability)
    (before,), closed = seen, list(synced)
    after = run(tmp_path, look, durability=durability)

    if durability == "memory":
        assert after[1] == 0
        assert after[0] != before[0]
    else:
        assert closed == [True]
        assert after == before


def test_no_room_for_a_new_segment_at_a_stop_does_not_keep_it_from_its_checkpoint(
    tmp_path, monkeypatch
):
    """Which may lie elsewhere; nothing will be recorded any more."""

    async def fill(registry):
        before = await created(registry)
        monkeypatch.setattr("stepwell_server.storage.journal.writer.Segment", refuse)
        return before

    before = run(tmp_path, fill, durability="everysec")
    monkeypatch.undo()

    assert (tmp_path / "m" / "clean-stop").exists()
    assert run(tmp_path, look, durability="everysec") == before
