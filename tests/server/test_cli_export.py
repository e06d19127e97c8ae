"""The files of an export: all of them or none, whatever the disk does."""

from __future__ import annotations

import errno
import os
import random

import pytest
from stepwell_core.errors import Conflict
from stepwell_server.cli_export import Drafts
from stepwell_server.storage import disk
from stepwell_server.storage.disk import System

from tests.server.storage.forgetful_disk import ForgetfulDisk

FILES = {"parameters": b"p" * 5000, "optimizer": b"o" * 9000, "manifest": b"m" * 10}


def export(folder):
    """Write all files and show them; if that fails, tidy up."""
    with Drafts(folder, FILES) as drafts:
        return write_all(drafts)


def write_all(drafts):
    """Write all files and show them; whatever fails, leave it as it is."""
    for name, content in FILES.items():
        with drafts.file(name) as file:
            file.write(content)
    return drafts.show()


def found_in(folder):
    """Return the files in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("seed", range(20))
def test_what_was_exported_survives_a_power_loss(tmp_path, monkeypatch, seed):
    """The files, their names, and the folders that were made for them."""
    system = ForgetfulDisk(tmp_path)
    monkeypatch.setattr(disk, "system", system)

    export(tmp_path / "a" / "b")
    system.crash(random.Random(seed))

    assert found_in(tmp_path / "a" / "b") == FILES


@pytest.mark.parametrize("seed", range(5))
def test_a_manifest_is_there_after_a_power_loss_only_with_all_it_tells_of(
    tmp_path, monkeypatch, seed
):
    """The power fails at each call in turn."""
    rng, calls = random.Random(seed), 0
    while True:
        folder = tmp_path / f"root{calls}"
        folder.mkdir()
        system = ForgetfulDisk(folder)
        monkeypatch.setattr(disk, "system", system)
        system.lose_power_after(calls)
        try:
            write_all(Drafts(folder / "a", FILES))  # without power nobody tidies up
        except OSError:
            system.crash(rng)
        else:
            break
        exported = folder / "a"
        if (exported / "manifest").exists():
            assert found_in(exported) == FILES
        calls += 1

    assert calls > 20


class FailingDisk(System):
    """A disk whose every call fails after so many."""

    def __init__(self, name, calls):
        self.left = calls

        def failing(*arguments):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return getattr(System, name)(self, *arguments)

        setattr(self, name, failing)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        *[("open", calls) for calls in range(6)],
        *[("pwrite", calls) for calls in range(3)],
        *[("sync", calls) for calls in range(6)],
        *[("rename", calls) for calls in range(3)],
        *[("make_folder", calls) for calls in range(2)],
    ],
)
def test_a_disk_that_fails_leaves_nothing_of_an_export(tmp_path, monkeypatch, name, calls):
    """Whichever call it is: no file, no folder that was made for it, and what was there stays."""
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(disk, "system", FailingDisk(name, calls))

    with pytest.raises(OSError, match="No space"):
        export(tmp_path / "a" / "b")

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_was_there_stays_when_an_export_fails(tmp_path, monkeypatch):
    """With what is in it."""
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(disk, "system", FailingDisk("rename", 2))

    with pytest.raises(OSError, match="No space"):
        export(tmp_path)

    assert found_in(tmp_path) == {"notes.txt": b"mine"}


def test_an_export_that_was_interrupted_leaves_nothing(tmp_path, monkeypatch):
    """Ctrl-C in the middle of a file."""

    def interrupted(*written):
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.NewFile, "write", interrupted)

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "a")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_a_name_that_is_taken_is_refused_before_anything_is_written(tmp_path, name):
    """It says which, and stays as it is."""
    (tmp_path / name).write_text("mine")

    with pytest.raises(Conflict, match=f"{name} exists already"):
        export(tmp_path)

    assert found_in(tmp_path) == {name: b"mine"}
