"""Whole or not at all."""

import errno
import multiprocessing
import os
import random
import stat

import pytest
from stepwell_core.errors import DataFolderInvalid
from stepwell_server.storage import disk

from tests.server.storage.forgetful_disk import ForgetfulDisk


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


def test_folders_that_had_to_be_made_outlast_a_loss_of_power(tmp_path, monkeypatch):
    """Each name is synced in the folder above it."""
    forgetful = ForgetfulDisk(tmp_path)
    monkeypatch.setattr(disk, "system", forgetful)

    disk.make_folders(tmp_path / "a" / "b" / "c")
    disk.make_folders(tmp_path / "a" / "b" / "c")
    forgetful.crash(random.Random(1))

    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_a_folder_is_not_made_where_a_file_is(tmp_path):
    """Nor below one."""
    (tmp_path / "a").write_text("x")

    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises((FileExistsError, NotADirectoryError)):
            disk.make_folders(path)


class NoDirect(disk.System):
    """A file system without O_DIRECT, which says so at opening or at the first byte."""

    def __init__(self, error, says_so_at):
        self._error, self._says_so_at, self.direct = error, says_so_at, set()

    def refuse(self):
        raise OSError(self._error, os.strerror(self._error))

    def open(self, path, flags, mode=0o666):
        if flags & os.O_DIRECT and self._says_so_at == "open":
            self.refuse()
        descriptor = super().open(path, flags, mode)
        (self.direct.add if flags & os.O_DIRECT else self.direct.discard)(descriptor)
        return descriptor

    def pwrite(self, descriptor, content, offset):
        if descriptor in self.direct:
            self.refuse()
        return super().pwrite(descriptor, content, offset)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("says_so_at", ["open", "first byte"])
def test_a_file_system_that_cannot_go_past_the_cache_is_written_and_read_through_it(
    tmp_path, monkeypatch, error, says_so_at
):
    """Whenever it says that it cannot."""
    system = NoDirect(error, says_so_at)
    monkeypatch.setattr(disk, "system", system)
    real = os.preadv

    def preadv(descriptor, buffers, offset):
        if descriptor in system.direct:
            system.refuse()
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    content = bytes(range(256)) * 20_000  # a window and a part

    with disk.NewFile(tmp_path / "a", is_large=True) as file:
        file.write(content)

    assert b"".join(map(bytes, disk.pieces_of(tmp_path / "a"))) == content
