"""A journal that was taken away, or that goes on from another checkpoint, is no silent loss."""

from __future__ import annotations

import errno
import shutil

import pytest
from stepwell_core.errors import CheckpointInvalid, JournalInvalid
from stepwell_core.push import Push
from stepwell_server.storage import disk
from stepwell_server.storage.archive import CheckpointArchive

from tests.server.registries import (
    created,
    damage_newest_checkpoint,
    look,
    push,
    run,
    tick,
)
from tests.server.storage.snapshots import reseal


def journal_of(path):
    """The folder of the model's journal."""
    return path / "m" / "journal"


def files(path):
    """All files of a folder, with their content."""
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


async def with_two_segments(registry):
    """Train over a checkpoint that begins a segment and cannot be written."""
    await created(registry)
    model = registry.get("m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointArchive, "write", failing)
        with pytest.raises(OSError, match="broken"):
            await model.checkpoint()
    await push(model, "b", 5)
    return await look(registry)


def failing(*arguments, **options):
    """Fail."""
    raise OSError("broken")


@pytest.mark.parametrize("durability", ["everysec", "always"])
@pytest.mark.parametrize("what", ["folder", "newest", "all"])
def test_a_journal_that_was_taken_away_refuses_the_start(tmp_path, durability, what):
    """What was answered would be lost without a word. Put back, all is there."""
    before = run(tmp_path, with_two_segments, is_clean=False, durability=durability)
    folder, aside = journal_of(tmp_path), tmp_path.with_name(f"{tmp_path.name}-aside")
    shutil.copytree(folder, aside)
    if what == "folder":
        shutil.rmtree(folder)
    else:
        for segment in sorted(folder.glob("*.segment"))[-1 if what == "newest" else 0 :]:
            segment.unlink()
    left = files(tmp_path / "m")

    with pytest.raises(JournalInvalid, match=r"00000002-4\.segment.*newest-segment"):
        run(tmp_path, look, durability=durability)

    assert files(tmp_path / "m") == left
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    assert run(tmp_path, look, durability=durability) == before


def test_a_journal_that_is_lost_can_be_given_up(tmp_path):
    """By the step that the refusal names; everyone is told."""
    before = run(tmp_path, created, is_clean=False, durability="always")
    shutil.rmtree(journal_of(tmp_path))
    (tmp_path / "m" / "newest-segment").unlink()

    after = run(tmp_path, look, durability="always")

    assert after[1:] == (0, [0.0] * 4)
    assert after[0] != before[0]


def test_a_note_of_the_newest_segment_that_is_damaged_refuses_the_start(tmp_path):
    """With the file's name."""
    run(tmp_path, created, is_clean=False, durability="always")
    (tmp_path / "m" / "newest-segment").write_bytes(b"\xff" * 100)

    with pytest.raises(JournalInvalid, match="newest-segment"):
        run(tmp_path, look, durability="always")


def test_after_a_clean_stop_nobody_needs_the_journal(tmp_path):
    """The checkpoint has everything, so nothing is lost without it."""
    before = run(tmp_path, created, durability="always")
    shutil.rmtree(journal_of(tmp_path))

    assert run(tmp_path, look, durability="always") == before


def test_a_start_under_memory_gives_the_journal_up(tmp_path):
    """It is in a checkpoint then, and nothing is missed later."""
    run(tmp_path, created, is_clean=False, durability="always")
    run(tmp_path, look, is_clean=False, durability="memory")

    assert run(tmp_path, look, durability="always")[1:] == (3, [3.0] * 4)


def test_a_journal_does_not_go_on_from_an_earlier_checkpoint_without_one(tmp_path):
    """Checkpoints under `memory` have numbers of their own, though there are no records between
    them: a fallback over one loses what came after, and says so."""

    async def remember(registry):
        await created(registry)
        model = registry.get("m")
        first = await model.checkpoint()
        await push(model, "x", 5)
        second = await model.checkpoint()
        return first.journal_number, second.journal_number

    async def go_on(registry):
        model = registry.get("m")
        session, incarnation = model.engine.ledger.sessions["x"], model.engine.incarnation
        for sequence in (5, 6):
            await model.push(Push("x", session.epoch, sequence, incarnation, tick()))
        return await look(registry)

    first, second = run(tmp_path, remember, durability="memory")
    before = run(tmp_path, go_on, is_clean=False, durability="everysec")
    damage_newest_checkpoint(tmp_path)
    after = run(tmp_path, look, durability="everysec")

    assert first < second
    assert before[1:] == (10, [10.0] * 4)
    assert after[1:] == (3, [3.0] * 4)
    assert after[0] != before[0]


def test_a_disk_that_fails_at_a_start_refuses_it_and_is_remembered(tmp_path, monkeypatch):
    """The next start reads what is there, and says that something may be missing."""
    before = run(tmp_path, created, is_clean=False, durability="everysec")
    with monkeypatch.context() as patch:

        def fail(system, descriptor):
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(disk.System, "sync", fail)
        with pytest.raises(JournalInvalid, match=r"journal cannot be read.*Input/output error"):
            run(tmp_path, look, durability="everysec")

    after = run(tmp_path, look, durability="everysec")

    assert after[1:] == before[1:]
    assert after[0] != before[0]


@pytest.mark.parametrize("is_clean", [True, False])
@pytest.mark.parametrize(
    "newer",
    [
        lambda values: values.update(format_version=3),
        lambda values: values["definition"].update(consistency={"mode": "gossip"}),
        lambda values: values["definition"]["optimizer"].update(class_name="Lion"),
    ],
)
def test_a_checkpoint_of_a_newer_server_refuses_the_start(tmp_path, newer, is_clean):
    """It is whole, so nobody goes back behind it: who can read it finds all that was answered."""

    async def train(registry):
        await created(registry)
        await registry.get("m").checkpoint()
        await push(registry.get("m"), "b", 5)

    run(tmp_path, train, is_clean=is_clean, durability="always")
    folder = max((tmp_path / "m" / "checkpoints").glob("0*"))
    reseal(folder, newer)
    left = files(tmp_path / "m")

    with pytest.raises(CheckpointInvalid, match=f"{folder.name} .*Use the Stepwell that wrote it"):
        run(tmp_path, look, durability="always")

    assert files(tmp_path / "m") == left
