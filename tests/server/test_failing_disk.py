"""Each call to the disk fails in turn, while something is written: all of it is done, or nothing.

Of what is said to have failed nothing is left that a restart would take for done, the next attempt
works, and what was acknowledged is there after a crash. Only a journal that failed stays read-only.
"""

from __future__ import annotations

import errno
import itertools
import os

import pytest
from stepwell_core.errors import DiskFull, ModelNotFound, ModelReadOnly, StepwellError
from stepwell_server.storage import disk
from stepwell_server.storage.archive import CheckpointArchive
from stepwell_server.storage.journal import Journal
from stepwell_server.storage.stores import LocalStore

from tests.server.failing_disk import FailingDisk
from tests.server.registries import definition, look, push, run
from tests.server.storage.journal.journals import IDENTITY, Content, append, kept
from tests.server.storage.journal.journals import opened as opened_journal
from tests.server.storage.snapshots import assert_holds, snapshot

WAYS = [(errno.EIO, False), (errno.EIO, True), (errno.ENOSPC, False), (errno.ENOSPC, True)]
ways = pytest.mark.parametrize(
    ("number", "stays"), WAYS, ids=["EIO", "EIO-stays", "ENOSPC", "ENOSPC-stays"]
)

some_ways = pytest.mark.parametrize(
    ("number", "stays"), [WAYS[0], WAYS[3]], ids=["EIO", "ENOSPC-stays"]
)

REFUSED = (OSError, StepwellError)


@pytest.fixture
def failing(monkeypatch):
    """The disk; nothing waits for the one below, which is not what is tested."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: None)
    double = FailingDisk()
    monkeypatch.setattr(disk, "system", double)
    return double


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


# Checkpoints


@ways
def test_a_checkpoint_is_written_or_it_is_not(tmp_path, failing, number, stays):
    """Whatever has a checkpoint's name is whole, the old ones stay, and another can be written.

    One that has its name when the disk fails may stay, though it was not acknowledged.
    """
    archive = CheckpointArchive("m", LocalStore(tmp_path), "the folder")
    archive.write(snapshot(1, seed=1), 0)
    opened = descriptors()
    told = set()
    for nth in itertools.count(1):
        kept = archive.ids()
        with failing.armed(nth, number, stays=stays):
            try:
                archive.write(snapshot(2, seed=2), 0)
            except REFUSED as error:
                told.add(type(error))
        if not failing.has_failed:
            break

        assert archive.ids()[: len(kept)] == kept
        for checkpoint_id in archive.ids():
            archive.verify(checkpoint_id)
        manifest, state = archive.newest()
        assert_holds(state, snapshot(manifest.counters.version, seed=manifest.counters.version))
        assert descriptors() == opened
    assert (OSError if number == errno.EIO else DiskFull) in told
    assert nth > 20


# The journal


class Writing:
    """A journal, what must be read back from it, and from which number on."""

    def __init__(self, folder) -> None:
        self.journal = Journal(folder, IDENTITY, 0, "always", 1 << 20)
        self.folder = folder
        self.expected: list[Content] = []
        self.needed = 0

    def append(self, nbytes: int) -> None:
        """Append a record; it counts from the moment on at which that returns."""
        self.expected.append(append(self.journal, nbytes))
        self.journal.sync()

    def rotate(self) -> None:
        """Begin a segment; let go of those before the last record."""
        first = self.journal.rotate()
        self.needed = first - 1
        self.journal.remove_before(self.needed)

    def check(self, error: Exception | None) -> None:
        """Check that it goes on after an error, or that it is only read, and what is there."""
        if self.journal.failure is None:
            self.append(5000)
            self.rotate()
        else:
            assert isinstance(error, ModelReadOnly)
            for refused in (lambda: append(self.journal), self.journal.rotate, self.journal.sync):
                with pytest.raises(ModelReadOnly):
                    refused()
        self.journal.close()
        found, expected = kept(self.folder, self.needed), self.expected[self.needed :]
        assert found[: len(expected)] == expected
        assert len(found) <= len(expected) + (self.journal.failure is not None)


def records(writing: Writing, nbytes: int) -> None:
    """Append some."""
    for _ in range(3):
        writing.append(nbytes)


def segments(writing: Writing, nbytes: int) -> None:
    """Begin some, of which the later ones are made from old files."""
    for _ in range(3):
        writing.append(nbytes)
        writing.rotate()


@ways
@pytest.mark.parametrize("work", [records, segments])
@pytest.mark.parametrize("nbytes", [100, 100_000])
def test_a_record_is_written_or_it_is_not(tmp_path, failing, number, stays, work, nbytes):
    """A full disk takes none and the next one stands in its place; one that failed takes none."""
    opened = descriptors()
    for nth in itertools.count(1):
        writing, error = Writing(tmp_path / str(nth)), None
        writing.append(100)
        with failing.armed(nth, number, stays=stays):
            try:
                work(writing, nbytes)
            except REFUSED as caught:
                error = caught
        if not failing.has_failed:
            break

        writing.check(error)
        assert descriptors() == opened
    writing.journal.close()
    assert nth > 6


@ways
def test_a_journal_begins_or_it_does_not(tmp_path, failing, number, stays):
    """And can be begun later, where there was none and where there was one."""
    opened = descriptors()
    for nth in itertools.count(1):
        folder = tmp_path / str(nth)
        for first in (0, 1):
            with failing.armed(nth, number, stays=stays):
                try:
                    Journal(folder, IDENTITY, first, "always", 1 << 20).close()
                except StepwellError as error:
                    assert isinstance(error, DiskFull | ModelReadOnly)  # noqa: PT017
            assert descriptors() == opened
            with opened_journal(folder, first) as journal:
                append(journal, 100)
        assert len(kept(folder)) == 2
        if not failing.has_failed:
            break
    assert nth > 8


# Models


@some_ways
def test_a_model_is_created_or_it_is_not(tmp_path, failing, number, stays):
    """Of one that is not there is no trace, and its name is free at once."""

    async def scenario(registry):
        names = []
        for nth in itertools.count(1):
            name, error = f"m{nth}", None
            with failing.armed(nth, number, stays=stays):
                try:
                    await registry.create(definition(name), None, exist_ok=False)
                except REFUSED as caught:
                    error = caught
            if error is not None:
                with pytest.raises(ModelNotFound):
                    registry.get(name)
                if not stays:
                    assert names_in(tmp_path) == sorted(names)
                await registry.create(definition(name), None, exist_ok=False)
            await push(registry.get(name), count=2)
            names.append(name)
            if not failing.has_failed:
                return {name: await look(registry, name) for name in names}

    before = run(tmp_path, scenario, is_clean=False, durability="always")
    after = run(tmp_path, look_at_all, durability="always")

    assert len(before) > 30
    assert after == before


@some_ways
def test_a_model_is_deleted_or_can_be_deleted_again(tmp_path, failing, number, stays):
    """It is pushed to no more; the second attempt removes it, or a new one takes its place."""

    async def scenario(registry):
        for nth in itertools.count(1):
            name, error = f"m{nth}", None
            model, _ = await registry.create(definition(name), None, exist_ok=False)
            await push(model, count=2)
            with failing.armed(nth, number, stays=stays):
                try:
                    await registry.delete(name)
                except REFUSED as caught:
                    error = caught
            with pytest.raises(ModelNotFound):
                registry.get(name)
            if error is not None and nth % 2:
                await registry.delete(name)
            elif error is not None:
                await registry.create(definition(name), None, exist_ok=False)
                await registry.delete(name)
            assert names_in(tmp_path) == []
            if not failing.has_failed:
                return nth

    calls = run(tmp_path, scenario, is_clean=False, durability="always")

    assert calls > 5
    assert run(tmp_path, look_at_all, durability="always") == {}


@some_ways
def test_a_history_begins_or_the_old_one_goes_on(tmp_path, failing, number, stays):
    """What is pushed after a restore that failed is acknowledged, so it is there after a crash."""

    async def scenario(registry):
        seen = {}
        for nth in itertools.count(1):
            name = f"m{nth}"
            model, _ = await registry.create(definition(name), None, exist_ok=False)
            await push(model, count=2)
            first, old = (await model.checkpoints.listed())[0]["id"], await look(registry, name)
            with failing.armed(nth, number, stays=stays):
                try:
                    await model.restore(first)
                except REFUSED:
                    assert await look(registry, name) == old
                else:
                    assert (await look(registry, name))[0] != old[0]
            has_failed = failing.has_failed
            if model.recorder.failure is None:
                await push(model, "w1", 3)
            seen[name] = (model.recorder.failure is not None, *await look(registry, name))
            if not has_failed:
                return seen

    before = run(tmp_path, scenario, is_clean=False, durability="always")
    after = run(tmp_path, look_at_all, durability="always")

    assert len(before) > 30
    for name, (is_only_read, *state) in before.items():
        if is_only_read:  # the one history or the other, as it was
            assert after[name][2] in ([0.0] * 4, [2.0] * 4), name
        else:
            assert after[name] == tuple(state), name


async def look_at_all(registry):
    """Return what each model is."""
    return {
        model.definition.name: await look(registry, model.definition.name) for model in registry
    }


def names_in(folder):
    """Return the names of the folders that a start would take for models."""
    found = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(name for name in found if not name.startswith((disk.TEMPORARY, disk.TRASH)))
