"""Whole or not at all."""

import multiprocessing
import stat

import pytest
from stepwell_core.errors import DataFolderInvalid
from stepwell_server.storage import disk


def test_a_file_is_replaced_whole(tmp_path):
    """And nothing is left beside it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    disk.write_durably(path, b"new")

    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_for_its_owner_is_never_readable_by_others(tmp_path):
    """It is made with those permissions, not given them later."""
    disk.write_durably(tmp_path / "secret", b"x", mode=0o600)

    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    """A folder in the way cannot be replaced by a file."""
    (tmp_path / "file").mkdir()

    with pytest.raises(OSError, match="directory"):
        disk.write_durably(tmp_path / "file", b"new")

    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_new_folder_appears_when_the_block_ends_well(tmp_path):
    """Not before."""
    path = tmp_path / "folder"

    with disk.new_folder(path) as temporary:
        (temporary / "file").write_bytes(b"x")
        assert not path.exists()

    assert (path / "file").read_bytes() == b"x"


def test_a_new_folder_vanishes_when_the_block_fails(tmp_path):
    """With what was written into it."""

    def write():
        with disk.new_folder(tmp_path / "folder") as temporary:
            (temporary / "file").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()

    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_removed_with_its_content(tmp_path):
    """By way of a name that `remove_leftovers` knows."""
    (tmp_path / "folder" / "inner").mkdir(parents=True)

    disk.remove_folder(tmp_path / "folder")

    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    """Half-written files and folders, half-removed ones; a link is removed and not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    folder = tmp_path / "data"
    (folder / ".tmp-1" / "inner").mkdir(parents=True)
    (folder / ".trash-2").mkdir()
    (folder / ".tmp-3").write_text("x")
    (folder / ".tmp-4").symlink_to(outside)
    (folder / "model").mkdir()
    (folder / ".hidden").mkdir()

    disk.remove_leftovers(folder)

    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "model"]
    assert (outside / "kept").exists()


def hold(folder, connection):
    """Lock a folder until told otherwise, in a process of its own."""
    lock = disk.FolderLock(folder, ".lock")
    connection.send("locked")
    connection.recv()
    lock.release()


def test_a_lock_keeps_others_out_until_its_process_ends(tmp_path):
    """Also when that process is killed; the error says which process it is."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "locked"

    with pytest.raises(DataFolderInvalid, match=f"in use by another server.*{process.pid}"):
        disk.FolderLock(tmp_path, ".lock")
    process.kill()
    process.join()

    disk.FolderLock(tmp_path, ".lock").release()
    ours.close()
    theirs.close()
