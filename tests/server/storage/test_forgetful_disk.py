"""The double itself: it loses what may be lost, and nothing else."""

import contextlib
import os
import random

import pytest
from stepwell_server.storage import disk

from tests.server.storage.forgetful_disk import ForgetfulDisk

SEEDS = range(60)


@pytest.fixture
def forgetful(tmp_path, monkeypatch):
    """A disk that has a file and a folder already."""
    (tmp_path / "old").write_bytes(b"o" * 4096)
    (tmp_path / "folder").mkdir()
    double = ForgetfulDisk(tmp_path)
    monkeypatch.setattr(disk, "system", double)
    return double


def after_crashes(root, monkeypatch, write, look):
    """What `look` says of a folder after `write` and a power loss, for many of them."""
    seen = []
    for seed in SEEDS:
        folder = root / str(seed)
        folder.mkdir()
        double = ForgetfulDisk(folder)
        monkeypatch.setattr(disk, "system", double)
        write(folder)
        double.crash(random.Random(seed))
        seen.append(look(folder))
    return seen


def test_every_system_call_is_remembered():
    """A method that `System` gets one day must be thought of here."""
    calls = {name for name in vars(disk.System) if not name.startswith("_")}

    assert calls <= set(vars(ForgetfulDisk))


def test_what_was_synced_stays(forgetful, tmp_path):
    """Content by the file's sync, the name by the folder's."""
    disk.write_durably(tmp_path / "new", b"n" * 10_000)

    forgetful.crash(random.Random(1))

    assert (tmp_path / "new").read_bytes() == b"n" * 10_000
    assert (tmp_path / "old").read_bytes() == b"o" * 4096
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "new", "old"]


def test_sectors_that_were_not_synced_are_kept_or_lost_one_by_one(tmp_path, monkeypatch):
    """There are files with none, with some and with all of them; never with other bytes."""

    def write(folder):
        with disk.NewFile(folder / "file") as file:
            file.write(b"a" * 2048)
        disk.sync_folder(folder)
        descriptor = disk.system.open(folder / "file", os.O_RDWR)
        disk.system.pwrite(descriptor, b"b" * 2048, 0)
        disk.system.close(descriptor)

    seen = after_crashes(
        tmp_path, monkeypatch, write, lambda folder: (folder / "file").read_bytes()
    )

    sectors = {content[at : at + 512] for content in seen for at in range(0, 2048, 512)}
    assert sectors == {b"a" * 512, b"b" * 512}
    assert {b"a" * 2048, b"b" * 2048} < set(seen)
    assert len(set(seen)) > 5


def test_a_name_that_was_not_synced_may_be_lost_though_its_file_was(tmp_path, monkeypatch):
    """And may be kept."""

    def write(folder):
        with disk.NewFile(folder / "file") as file:
            file.write(b"x")

    seen = after_crashes(tmp_path, monkeypatch, write, lambda folder: (folder / "file").exists())

    assert set(seen) == {False, True}


def test_changes_of_a_folder_are_lost_from_the_end(tmp_path, monkeypatch):
    """The last of them may be missing, never one before it; a rename is whole."""

    def write(folder):
        for name in "abc":
            disk.write_durably(folder / name, name.encode())
        disk.system.rename(folder / "a", folder / "d")
        disk.system.unlink(folder / "b")
        disk.system.rename(folder / "c", folder / "d")

    seen = after_crashes(
        tmp_path,
        monkeypatch,
        write,
        lambda folder: "".join(
            f"{path.name}={path.read_text()} " for path in sorted(folder.iterdir())
        ),
    )

    assert set(seen) == {"a=a b=b c=c ", "b=b c=c d=a ", "c=c d=a ", "d=c "}


def test_a_durable_replacement_is_the_old_or_the_new_file(tmp_path, monkeypatch):
    """The promise of `write_durably`, were the power to fail at its last step."""

    def write(folder):
        disk.write_durably(folder / "file", b"old" * 1000)
        monkeypatch.setattr(disk, "sync_folder", lambda path: None)
        disk.write_durably(folder / "file", b"new" * 1000)
        monkeypatch.undo()

    seen = after_crashes(
        tmp_path, monkeypatch, write, lambda folder: (folder / "file").read_bytes()
    )

    assert set(seen) == {b"old" * 1000, b"new" * 1000}


def test_a_new_folder_is_there_whole(tmp_path, monkeypatch):
    """With the files in it, though they were written past `disk.system` and synced through it."""

    def write(folder):
        with disk.new_folder(folder / "new") as temporary:
            (temporary / "file").write_bytes(b"x" * 5000)
            disk.sync_file(temporary / "file")

    seen = after_crashes(
        tmp_path, monkeypatch, write, lambda folder: (folder / "new" / "file").read_bytes()
    )

    assert set(seen) == {b"x" * 5000}


def test_what_was_written_past_it_is_not_durable(tmp_path, monkeypatch):
    """A file of another library, that nobody synced: lost or kept, and so is what it replaced."""

    def write(folder):
        disk.write_durably(folder / "old", b"o" * 512)
        (folder / "old").write_bytes(b"p" * 512)
        (folder / "new").write_bytes(b"x")

    seen = after_crashes(
        tmp_path,
        monkeypatch,
        write,
        lambda folder: ((folder / "old").read_bytes()[:1], (folder / "new").exists()),
    )

    assert {(b"o", False), (b"p", True)} < set(seen)
    assert {content for content, _ in seen} == {b"o", b"p"}


def test_a_removed_folder_comes_back_with_a_part_of_its_files_at_most(tmp_path, monkeypatch):
    """Until the folder it was in is synced."""

    def write(folder):
        with disk.new_folder(folder / "new") as temporary:
            for name in "abc":
                disk.write_durably(temporary / name, b"x")
        disk.system.remove_tree(folder / "new")

    seen = after_crashes(
        tmp_path,
        monkeypatch,
        write,
        lambda folder: len(list((folder / "new").iterdir())) if (folder / "new").exists() else None,
    )

    assert {None, 3} < set(seen)


def test_descriptors_from_before_a_crash_are_dead(forgetful, tmp_path):
    """Their process is gone."""
    descriptor = disk.system.open(tmp_path / "old", os.O_RDWR)
    forgetful.crash(random.Random(1))

    with pytest.raises(OSError, match="power is off"):
        disk.system.pwrite(descriptor, b"x", 0)
    with pytest.raises(OSError, match="power is off"):
        disk.system.sync_content(descriptor)

    disk.system.close(descriptor)
    assert (tmp_path / "old").read_bytes() == b"o" * 4096


def test_power_may_be_lost_between_any_two_calls(tmp_path, monkeypatch):
    """From then on nothing is done, and the old file or the new one is there, whole."""
    for calls in range(10):
        folder = tmp_path / str(calls)
        folder.mkdir()
        double = ForgetfulDisk(folder)
        monkeypatch.setattr(disk, "system", double)
        disk.write_durably(folder / "file", b"old")
        double.lose_power_after(calls)
        possible = {b"old", b"new"}
        with contextlib.suppress(OSError):
            disk.write_durably(folder / "file", b"new")
            possible = {b"new"}
        double.crash(random.Random(calls))

        assert (folder / "file").read_bytes() in possible
    assert possible == {b"new"}
