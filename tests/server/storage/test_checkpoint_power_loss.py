"""The power fails at each system call of a checkpoint: the old one is there, or the new one is.

In the process, on a disk that forgets what was not synced; tests/faults kills real processes at
real calls, but their page cache stays.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil

import pytest
from stepwell_core.errors import StepwellError
from stepwell_server.storage import disk
from stepwell_server.storage.archive import CheckpointArchive
from stepwell_server.storage.folders import ModelFolder

from tests.server.storage.forgetful_disk import Folder, ForgetfulDisk
from tests.server.storage.snapshots import assert_holds, snapshot

SEEDS = (2, 7, 5)
"""Of what is left: nothing, half, and all of what was not synced."""


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A data folder with a model that has one checkpoint, of version 1."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
    data = tmp_path / "prepared"
    data.mkdir()
    monkeypatch.setattr(disk, "system", CachedDisk(data))
    model = ModelFolder(data / "m")
    model.create()
    write(model.archive, 1)
    return data


def write(archive: CheckpointArchive, version: int) -> None:
    """Write a checkpoint of that version."""
    archive.write(snapshot(version, seed=version), journal_number=0)


class CachedDisk(ForgetfulDisk):
    """One that makes the same calls, and does not wait for the disk below: the double remembers."""

    def open(self, path, flags, mode=0o666):
        return super().open(path, flags & ~os.O_DIRECT, mode)


class Trial:
    """A copy of a data folder on a disk that forgets, on which a checkpoint of version 2 is made.

    Attributes:
        is_acknowledged: Whether it was said to be written.
        is_over: Whether all was done before the power went.
    """

    def __init__(self, prepared, calls: int, seed: int, monkeypatch) -> None:
        self.data = prepared.with_name(f"{calls}-{seed}")
        shutil.copytree(prepared, self.data)
        self.double = CachedDisk(self.data)
        monkeypatch.setattr(disk, "system", self.double)
        self.model = ModelFolder(self.data / "m")
        self.is_acknowledged = self.is_over = False
        self.double.lose_power_after(calls)
        try:
            write(self.model.archive, 2)
            self.is_acknowledged = True
            self.model.archive.retain(1)
            self.is_over = True
        except (OSError, StepwellError):
            pass
        self.double.crash(random.Random(seed))

    def check(self) -> None:
        """Check what is there before and after what a start does, and that it goes on."""
        archive = self.model.archive
        for checkpoint_id in archive.ids():
            archive.verify(checkpoint_id)  # what has a name is whole
        manifest, state = archive.newest()
        version = manifest.counters.version
        assert version == 2 if self.is_acknowledged else version in (1, 2)
        assert_holds(state, snapshot(version, seed=version))
        self.model.prepare()
        assert {path.name for path in self.model.checkpoints_path.iterdir()} == set(archive.ids())

    def check_that_it_goes_on(self) -> None:
        """Check that the next checkpoint can be written, and is there for certain."""
        write(self.model.archive, 3)
        self.double.crash(random.Random(0))
        assert self.model.archive.newest()[0].counters.version == 3


def test_whenever_the_power_fails_there_is_the_old_checkpoint_or_the_new_one(prepared, monkeypatch):
    """Whole, and nothing else; and the new one for certain, once it was said to be written."""
    for calls in itertools.count():
        trials = [Trial(prepared, calls, seed, monkeypatch) for seed in SEEDS]
        for trial in trials:
            monkeypatch.setattr(disk, "system", trial.double)
            trial.check()
            if trial is trials[0]:
                trial.check_that_it_goes_on()
            shutil.rmtree(trial.data)
        if all(trial.is_over for trial in trials):
            break
    assert calls > 20


def test_whenever_the_power_fails_while_leftovers_go_the_checkpoints_stay(prepared, monkeypatch):
    """A start that is cut off is like none."""
    whole = ModelFolder(prepared / "m")
    shutil.copytree(whole.checkpoints_path / "000001-v1", whole.checkpoints_path / ".tmp-1")
    shutil.copytree(whole.checkpoints_path / "000001-v1", whole.checkpoints_path / ".trash-1")
    (whole.path / ".tmp-2").write_bytes(b"x")
    for calls, seed in itertools.product(range(8), SEEDS):
        data = prepared.with_name("tried")
        shutil.copytree(prepared, data)
        double, model = CachedDisk(data), ModelFolder(data / "m")
        monkeypatch.setattr(disk, "system", double)
        double.lose_power_after(calls)
        try:
            model.prepare()
            is_over = True
        except OSError:
            is_over = False
        double.crash(random.Random(seed))

        model.prepare()

        assert [path.name for path in model.checkpoints_path.iterdir()] == ["000001-v1"]
        assert_holds(model.archive.newest()[1], snapshot(1, seed=1))
        shutil.rmtree(data)
    assert is_over


def content_is_not_synced(monkeypatch):
    """The bytes of files are on the disk some time later."""
    original = ForgetfulDisk.sync

    def sync(self, descriptor):
        if isinstance(self._open.get(descriptor), Folder):
            original(self, descriptor)

    monkeypatch.setattr(ForgetfulDisk, "sync", sync)


def names_are_not_synced(monkeypatch):
    """A rename is on the disk some time later."""
    monkeypatch.setattr(disk, "sync_folder", lambda path: None)


def a_folder_has_its_name_from_the_beginning(monkeypatch):
    """A checkpoint is written where it will lie."""

    @contextlib.contextmanager
    def new_folder(path):
        disk.system.make_folder(path)
        yield path
        disk.sync_folder(path)
        disk.sync_folder(path.parent)

    monkeypatch.setattr(disk, "new_folder", new_folder)


@pytest.mark.parametrize(
    "bug",
    [content_is_not_synced, names_are_not_synced, a_folder_has_its_name_from_the_beginning],
    ids=lambda bug: bug.__name__,
)
def test_a_seeded_bug_is_found(prepared, monkeypatch, bug):
    """By one of the power losses that pass without it."""
    bug(monkeypatch)

    for calls, seed in itertools.product(range(26), SEEDS):
        try:
            Trial(prepared, calls, seed, monkeypatch).check()
        except (AssertionError, StepwellError):
            return
    pytest.fail(f"no power loss found that {bug.__doc__}")
