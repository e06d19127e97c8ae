"""A model comes back with everything that was answered, or says that it does not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from dataclasses import replace

import pytest
from stepwell_core.definition import Definition
from stepwell_core.errors import (
    JournalBehind,
    JournalInvalid,
    PayloadMismatch,
    StaleIncarnation,
    StoreFailed,
)
from stepwell_core.optimizers import Adam
from stepwell_core.push import Push
from stepwell_server import recovery
from stepwell_server.checkpoints import Schedule
from stepwell_server.registry import Registry
from stepwell_server.storage import disk, journal
from stepwell_server.storage.archive import CheckpointArchive
from stepwell_server.storage.folders import ModelFolder
from stepwell_server.storage.stores.local import LocalStore

from tests.server.registries import LAYOUT, created, definition, look, push, run, tick

JOURNALED = ["everysec", "always"]


def segments(path):
    """Return the files of the model's journal."""
    return sorted((path / "m" / "journal").glob("*.segment"))


@pytest.mark.parametrize("durability", JOURNALED)
def test_a_crash_costs_nothing_that_was_answered(tmp_path, durability):
    """Parameters, versions, incarnation and sessions; the next push goes on, the last is known."""
    before = run(tmp_path, created, is_clean=False, durability=durability)

    async def go_on(registry):
        found, model = await look(registry), registry.get("m")
        session = model.engine.ledger.sessions["w0"]
        again = await model.push(Push("w0", session.epoch, 2, found[0], tick()))
        following = await model.push(Push("w0", session.epoch, 3, found[0], tick()))
        return found, again, following, model.recovered

    after, again, following, recovered = run(tmp_path, go_on, durability=durability)

    assert after == before
    assert (again.duplicate, again.version) == (True, 3)
    assert (following.duplicate, following.version) == (False, 4)
    assert (recovered.records, recovered.is_whole, recovered.cut_off) == (4, True, None)


@pytest.mark.parametrize("durability", JOURNALED)
def test_all_kinds_of_changes_come_back(tmp_path, durability):
    """Sessions opened and closed, hyperparameters, a finalized average; to the bit, with slots."""
    rule = Adam(0.1, use_ema=True, name="adam")

    async def change(registry):
        model, _ = await registry.create(Definition("m", LAYOUT, rule), None, exist_ok=False)
        await push(model, "a", 2)
        await model.rules.set_hyperparameters({"learning_rate": 0.01}, None)
        await push(model, "b", 2)
        await model.finalize()
        await model.sessions.close("b", None)
        await push(model, "c")
        return await model.read(everything)

    def everything(engine):
        arenas = {"": engine.store.current, **engine.store.slots}
        arrays = {name: held["float32"].tobytes() for name, held in arenas.items()}
        return arrays, engine.counters, engine.ledger.to_json(), engine.definition.to_json()

    async def see(registry):
        return await registry.get("m").read(everything)

    before = run(tmp_path, change, is_clean=False, durability=durability)

    assert run(tmp_path, see, is_clean=False, durability=durability) == before
    assert run(tmp_path, see, durability=durability) == before


@pytest.mark.parametrize("durability", JOURNALED)
def test_deltas_come_back_with_their_sign_and_their_kind(tmp_path, durability):
    """The payload is the delta as it came; the same bytes as a gradient are no repetition of it."""
    sent = {}

    async def change(registry):
        model, _ = await registry.create(definition(), None, exist_ok=False)
        session, _, incarnation, _ = await model.sessions.open("w0")
        for sequence, value in enumerate((2.0, 0.5)):
            push = Push("w0", session.epoch, sequence, incarnation, tick(value), kind="delta")
            await model.push(push)
        sent["last"] = push
        return await look(registry)

    async def repeat(registry):
        found, model = await look(registry), registry.get("m")
        with pytest.raises(PayloadMismatch):
            await model.push(replace(sent["last"], kind="gradient"))
        return found, await model.push(sent["last"])

    before = run(tmp_path, change, is_clean=False, durability=durability)
    after, again = run(tmp_path, repeat, durability=durability)

    assert before[2] == [2.5] * 4
    assert after == before
    assert again.duplicate


@pytest.mark.parametrize(("durability", "is_kept"), [("everysec", False), ("always", True)])
def test_after_a_loss_of_power_only_always_knows_that_nothing_is_missing(
    tmp_path, monkeypatch, durability, is_kept
):
    """Under `everysec` the last second may be, so everyone is told; once."""
    before = run(tmp_path, created, is_clean=False, durability=durability)

    async def go_on(registry):
        found, model = await look(registry), registry.get("m")
        session = model.engine.ledger.sessions["w0"]
        try:
            await model.push(Push("w0", session.epoch, 3, before[0], tick()))
        except StaleIncarnation:
            return found, False
        return found, True

    with monkeypatch.context() as patch:
        patch.setattr(journal, "boot_id", lambda: "another start of the machine")
        after, goes_on = run(tmp_path, go_on, is_clean=False, durability=durability)
    again = run(tmp_path, look, durability=durability)

    assert after[1:] == before[1:]
    assert (after[0] == before[0], goes_on) == (is_kept, is_kept)
    assert again[0] == after[0]


def test_a_start_under_memory_takes_over_what_the_journal_has(tmp_path):
    """It is in a checkpoint before the journal goes."""
    before = run(tmp_path, created, is_clean=False, durability="always")

    after = run(tmp_path, look, is_clean=False, durability="memory")
    left = segments(tmp_path)
    again = run(tmp_path, look, is_clean=False, durability="memory")

    assert after == before
    assert left == []
    assert again[1:] == before[1:]
    assert again[0] != before[0]  # a crash under `memory`: nobody knows what was lost


def test_a_journal_of_another_history_is_left_out(tmp_path):
    """After a restore the old history's records mean nothing."""

    async def restore(registry):
        await created(registry)
        model = registry.get("m")
        manifest = await model.checkpoint()
        await push(model, "w1", 2)
        await model.restore(manifest.id)
        await push(model, "w2")
        return await look(registry)

    before = run(tmp_path, restore, is_clean=False, durability="always")

    assert run(tmp_path, look, durability="always") == before
    assert before[2] == [4.0] * 4


def test_a_restore_that_cannot_be_saved_changes_nothing_and_the_old_history_goes_on(
    tmp_path, monkeypatch
):
    """What is pushed after it is in the journal of the old history, and comes back."""

    def fail(*arguments, **options):
        raise OSError("no room")

    async def restore(registry):
        await created(registry)
        model = registry.get("m")
        manifest = await model.checkpoint()
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointArchive, "write", fail)
            with pytest.raises(OSError, match="no room"):
                await model.restore(manifest.id)
        await push(model, "w1", 2)
        return await look(registry)

    before = run(tmp_path, restore, is_clean=False, durability="always")

    assert run(tmp_path, look, durability="always") == before
    assert before[2] == [5.0] * 4


def test_a_record_that_was_on_the_disk_and_is_damaged_refuses_the_start(tmp_path):
    """With file and offset; nothing is changed."""
    run(tmp_path, created, is_clean=False, durability="always")
    (segment,) = segments(tmp_path)
    content = bytearray(segment.read_bytes())
    second = content.index(b"SWJR") if b"SWJR" in content else 4096
    content[second + 70] ^= 1
    segment.write_bytes(content)

    with pytest.raises(JournalInvalid, match=segment.name):
        run(tmp_path, look, durability="always")

    assert segment.read_bytes() == bytes(content)


def test_a_damaged_newest_checkpoint_whose_journal_is_gone_is_a_new_history(tmp_path):
    """Loudly: back to the one before, and everyone is told."""

    async def save(registry):
        await created(registry)
        await registry.get("m").checkpoint()
        return await look(registry)

    before = run(tmp_path, save, is_clean=False, durability="always")
    newest = sorted((tmp_path / "m" / "checkpoints").iterdir())[-1]
    (newest / "parameters.safetensors").write_bytes(b"")

    after = run(tmp_path, look, durability="always")

    assert after[1:] == (0, [0.0] * 4)
    assert after[0] != before[0]


@pytest.mark.parametrize("file", ["parameters.safetensors", "manifest.json"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, file):
    """The start is refused, and the next one finds everything; nothing was gone back behind."""
    real = disk.pieces_of

    def fail(path):
        if path.parent.name == "000002-v3" and path.name == file:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path)

    async def save(registry):
        await created(registry)
        await registry.get("m").checkpoint()
        await push(registry.get("m"), "a", 2)
        return await look(registry)

    def fail_to_measure(store, checkpoint_id, name):
        if (checkpoint_id, name) == ("000002-v3", file):
            raise OSError(errno.EMFILE, "Too many open files")
        return measure(store, checkpoint_id, name)

    before = run(tmp_path, save, is_clean=False, durability="always")
    measure = LocalStore.size
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "size", fail_to_measure)
        with pytest.raises(StoreFailed, match=r"000002-v3.*Too many open files.*not known"):
            run(tmp_path, look, durability="always")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "pieces_of", fail)
        with pytest.raises(StoreFailed, match=r"000002-v3.*Too many open files.*not known"):
            run(tmp_path, look, durability="always")

    assert run(tmp_path, look, durability="always") == before


def test_a_damaged_checkpoint_that_was_gone_back_behind_is_kept(tmp_path):
    """What was answered may still be got out of it by hand; only who unpins it lets it go."""

    async def save(registry):
        await created(registry)
        await registry.get("m").checkpoint()

    async def go_on(registry):
        for _ in range(3):
            await push(registry.get("m"))
            await registry.get("m").checkpoint()
        return registry.get("m").folder.archive.ids()

    run(tmp_path, save, is_clean=False, durability="always")
    (tmp_path / "m" / "checkpoints" / "000002-v3" / "parameters.safetensors").write_bytes(b"")

    left = run(tmp_path, go_on, durability="always", schedule=Schedule(keep=1))

    assert left == ["000002-v3", "000006-v3"]


def test_checkpoints_are_written_by_themselves_and_old_ones_go(tmp_path):
    """After so many versions; the journal is cut with each."""
    schedule = Schedule(every_versions=5, keep=2)

    async def train(registry):
        model, _ = await registry.create(definition(), None, exist_ok=False)
        seen = []
        for _ in range(4):
            seen.append(model.checkpoints.saved_id)
            await push(model, count=6)
            while model.checkpoints.saved_id == seen[-1]:
                await asyncio.sleep(0.01)
        async with model.checkpoints.lock:  # the old ones go a moment after the new one is there
            return [entry["version"] for entry in await model.checkpoints.listed()]

    versions = run(tmp_path, train, is_clean=False, durability="everysec", schedule=schedule)

    assert versions == [18, 24]
    assert len(segments(tmp_path)) == 1


def test_a_journal_that_grows_starts_a_checkpoint(tmp_path):
    """So its size is bounded however long a model trains."""

    async def train(registry):
        model, _ = await registry.create(definition(), None, exist_ok=False)
        first = model.checkpoints.saved_id
        while model.checkpoints.saved_id == first:
            with contextlib.suppress(JournalBehind):
                await push(model, count=20)
            await asyncio.sleep(0.01)
        async with model.checkpoints.lock:
            return model.recorder.nbytes

    nbytes = run(tmp_path, train, durability="everysec", journal_max_bytes=1 << 18)

    assert nbytes < 1 << 19


def test_a_proof_needs_always_or_the_same_boot_and_a_disk_that_did_not_fail():
    """The rule alone."""
    here = journal.boot_id()
    last = journal.LastSegment

    assert recovery._is_proven(last("everysec", here))
    assert recovery._is_proven(last("always", "other"))
    assert not recovery._is_proven(last("everysec", "other"))
    assert not recovery._is_proven(last("everysec", here, has_failed=True))
    assert recovery._is_proven(last("always", here, has_failed=True))
    assert not recovery._is_proven(None)


@pytest.mark.parametrize("durability", ["memory", "always"])
@pytest.mark.parametrize("place", ["prepare", "_recorder", "_secure"])
def test_a_start_that_fails_at_one_model_leaves_the_others_as_they_were(
    tmp_path, monkeypatch, durability, place
):
    """Their stop was clean, and still is; no thread and no file of theirs stays open."""

    async def create(registry):
        for name in "mn":
            await registry.create(definition(name), None, exist_ok=False)
            await push(registry.get(name), count=3)
        return [await look(registry, name) for name in "mn"]

    async def see(registry):
        return [await look(registry, name) for name in "mn"]

    before = run(tmp_path, create, durability=durability)
    threads = set(threading.enumerate())
    owner = ModelFolder if place == "prepare" else Registry
    with monkeypatch.context() as patch:
        real, calls = getattr(owner, place), []

        def fail_at_the_second(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise OSError("no room")
            return real(*arguments)

        patch.setattr(owner, place, fail_at_the_second)
        with pytest.raises(OSError, match="no room"):
            run(tmp_path, see, durability=durability)
    left = {thread.name for thread in set(threading.enumerate()) - threads}

    assert not any(name.startswith(("lane-", "journal-")) for name in left)
    assert run(tmp_path, see, durability=durability) == before
