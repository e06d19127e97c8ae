"""A disk that is full changes nothing; one that fails ends all writing."""

import contextlib
import errno
import os
import shutil
import subprocess

import pytest
from stepwell_core.errors import DiskFull, ModelReadOnly
from stepwell_server.storage import disk
from stepwell_server.storage.journal import Journal, check_newest, notes, read, sync_all

from tests.server.storage.journal.journals import (
    BROKEN,
    IDENTITY,
    NO_SPACE,
    FailingDisk,
    append,
    kept,
    opened,
)


@pytest.fixture
def failing(monkeypatch):
    """A disk that can be made to fail."""
    double = FailingDisk()
    monkeypatch.setattr(disk, "system", double)
    return double


def append_all(journal, nbytes, appended, is_synced=False):
    """Append more than is allocated already, or than there is room for."""
    for _ in range(300):
        appended.append(append(journal, nbytes))
        if is_synced:
            journal.sync()


@pytest.mark.parametrize("call", ["allocate", "pwrite"])
@pytest.mark.parametrize("nbytes", [100, 100_000])
def test_a_full_disk_takes_no_record_and_the_next_one_stands_in_its_place(
    tmp_path, failing, call, nbytes
):
    """What was appended before is there, and so is what comes when there is room again."""
    with opened(tmp_path / "journal") as journal:
        expected = [append(journal, 50)]
        failing.failing[call] = NO_SPACE
        with pytest.raises(DiskFull, match="nothing changed"):
            append_all(journal, nbytes, expected)
        assert journal.failure is None
        assert journal.next_number == len(expected)

        failing.failing.clear()
        expected.append(append(journal, nbytes))
        journal.sync()

        assert kept(tmp_path / "journal") == expected


def test_a_step_that_does_not_fit_is_not_needed(tmp_path, failing, monkeypatch):
    """Room is taken in large steps; near the end of the disk, only as much as a record needs."""
    asked = []

    def allocate(self, descriptor, offset, nbytes):
        asked.append(nbytes)
        if nbytes > 8192:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FailingDisk, "allocate", allocate)
    with opened(tmp_path / "journal") as journal:
        expected = append(journal, 100)
        journal.sync()

        assert kept(tmp_path / "journal") == [expected]
    assert asked == [65_536, 8192]


def test_no_room_for_a_new_segment_leaves_the_present_one(tmp_path, failing):
    """`rotate` refuses, and appending goes on; a journal that cannot be begun is not."""
    with opened(tmp_path / "journal") as journal:
        expected = [append(journal)]
        failing.failing["create"] = NO_SPACE
        with pytest.raises(DiskFull):
            journal.rotate()
        with pytest.raises(DiskFull):
            Journal(tmp_path / "other", IDENTITY, 0, "always", 1 << 20)
        failing.failing.clear()

        expected.append(append(journal))
        assert journal.rotate() == 2

    assert kept(tmp_path / "journal") == expected
    assert not list((tmp_path / "journal").glob(".tmp-*"))


def test_no_room_while_an_old_file_is_made_a_segment_keeps_it_for_the_next_try(tmp_path, failing):
    """It is not lost, and not a segment."""
    with opened(tmp_path / "journal") as journal:
        append(journal)
        journal.remove_before(journal.rotate())
        failing.failing["pwrite"] = NO_SPACE
        with pytest.raises(DiskFull):
            journal.rotate()
        failing.failing.clear()

        journal.rotate()

        assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == [
            "00000002-1.segment",
            "00000004-1.segment",
        ]


@pytest.mark.parametrize("call", ["pwrite", "allocate", "sync_content"])
def test_after_the_disk_failed_nothing_is_written_or_synced(tmp_path, failing, call):
    """The error says so, it is told once, and no descriptor is synced again."""
    told = []
    journal = Journal(tmp_path / "journal", IDENTITY, 0, "always", 1 << 20, on_failure=told.append)
    kept_before = append(journal)
    journal.sync()
    failing.failing[call] = BROKEN

    with pytest.raises(ModelReadOnly, match="Input/output error"):
        append_all(journal, 4096, [], is_synced=True)
    failing.failing.clear()
    failing.calls.clear()
    for refused in (lambda: append(journal), journal.sync, journal.rotate):
        with pytest.raises(ModelReadOnly, match="until the server is restarted"):
            refused()
    journal.close()

    assert failing.calls == []
    assert told == [journal.failure]
    assert kept(tmp_path / "journal")[0] == kept_before


@pytest.mark.parametrize("call", ["sync_content", "sync", "rename", "pwrite", "create"])
def test_a_disk_that_fails_in_rotate_ends_all_writing(tmp_path, failing, call):
    """What was appended is there all the same."""
    with opened(tmp_path / "journal") as journal:
        expected = append(journal)
        failing.failing[call] = BROKEN

        with pytest.raises(ModelReadOnly):
            journal.rotate()

        assert journal.failure is not None
        failing.failing.clear()
        with pytest.raises(ModelReadOnly):
            append(journal)
    assert kept(tmp_path / "journal") == [expected]


def test_a_failure_at_the_end_is_told(tmp_path, failing):
    """`close` syncs; everything is closed nevertheless."""
    journal = Journal(tmp_path / "journal", IDENTITY, 0, "everysec", 1 << 20)
    append(journal)
    descriptors = len(os.listdir("/proc/self/fd"))
    failing.failing["sync_content"] = BROKEN

    with pytest.raises(ModelReadOnly):
        journal.close()

    assert len(os.listdir("/proc/self/fd")) == descriptors - 2
    journal.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    mount = shutil.which("mount")
    folder = tmp_path / "small"
    folder.mkdir()
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"no small file system may be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("nbytes", [5000, 70_000, 300_000])
def test_a_disk_that_is_really_full_takes_no_record_until_there_is_room(small_disk, nbytes):
    """All that was taken is read back, and after some is removed the journal goes on."""
    (small_disk / "ballast").write_bytes(b"x" * 300_000)
    with opened(small_disk / "journal", max_bytes=1 << 30) as journal:
        expected = []
        with pytest.raises(DiskFull):
            append_all(journal, nbytes, expected)
        journal.sync()
        assert kept(small_disk / "journal") == expected
        with pytest.raises(DiskFull):
            append(journal, 800_000)

        (small_disk / "ballast").unlink()
        expected.append(append(journal, nbytes))
        journal.sync()

        assert journal.failure is None
        assert kept(small_disk / "journal") == expected


def test_a_second_sync_that_would_succeed_is_not_tried(tmp_path, failing):
    """The kernel reports a failed write-back once; to ask again is to be told a lie."""
    with opened(tmp_path / "journal") as journal:
        append(journal)
        failing.failing["sync_content"] = BROKEN
        with pytest.raises(ModelReadOnly):
            journal.sync()
        failing.failing.clear()
        failing.calls.clear()

        with pytest.raises(ModelReadOnly):
            journal.sync()

        assert failing.calls == []


def test_no_room_once_a_new_segment_has_its_name_ends_all_writing(tmp_path, failing, monkeypatch):
    """A start may find it, and then takes nothing more from the one before: that one must not go
    on, as it does when there is no room earlier."""
    with opened(tmp_path / "journal") as journal:
        expected = append(journal)
        real = FailingDisk.rename

        def rename(self, path, new):
            real(self, path, new)
            self.failing["sync"] = NO_SPACE  # the next is the folder's

        monkeypatch.setattr(FailingDisk, "rename", rename)
        with pytest.raises(ModelReadOnly, match="No space left"):
            journal.rotate()
        failing.failing.clear()

        with pytest.raises(ModelReadOnly):
            append(journal)
    assert kept(tmp_path / "journal") == [expected]


def test_a_rename_that_fails_and_was_made_ends_all_writing_too(tmp_path, failing, monkeypatch):
    """Over a network, an answer may be lost."""
    with opened(tmp_path / "journal") as journal:
        append(journal)
        real = FailingDisk.rename

        def rename(self, path, new):
            real(self, path, new)
            raise OSError(NO_SPACE, "No space left on device")

        monkeypatch.setattr(FailingDisk, "rename", rename)
        with pytest.raises(ModelReadOnly):
            journal.rotate()


@pytest.mark.parametrize(
    ("error", "goes_on"),
    [
        (OSError(NO_SPACE, "No space left on device"), True),
        (OSError(BROKEN, "Input/output error"), False),
        (MemoryError(), False),
    ],
)
def test_a_note_of_the_newest_segment_that_cannot_be_written(tmp_path, monkeypatch, error, goes_on):
    """For want of room the older one does, which is true as well; a broken disk ends all writing,
    for the new segment is there."""
    with opened(tmp_path / "journal") as journal:
        expected = [append(journal)]
        descriptors = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write_durably", lambda *arguments: raising(error))
            with contextlib.nullcontext() if goes_on else pytest.raises(ModelReadOnly):
                journal.rotate()
        assert len(os.listdir("/proc/self/fd")) == descriptors

        if goes_on:
            expected.append(append(journal))
    assert kept(tmp_path / "journal") == expected
    check_newest(tmp_path / "journal")


def raising(error):
    """Fail."""
    raise error


def test_the_segment_under_which_a_sync_failed_is_marked_until_it_goes(
    tmp_path, failing, monkeypatch
):
    """So a start knows that records may be missing, though the machine still runs."""
    monkeypatch.setattr(notes, "MEMORY", tmp_path / "missing")
    folder = tmp_path / "journal"
    with opened(folder, durability="everysec", sync_delay_s=60) as journal:
        append(journal)
        journal.sync()
        assert not read(folder, IDENTITY, 0).last.has_failed
        append(journal)
        failing.failing["sync_content"] = BROKEN
        with pytest.raises(ModelReadOnly):
            journal.sync()
    failing.failing.clear()
    assert read(folder, IDENTITY, 0).last.has_failed

    with opened(folder, 2, durability="everysec") as journal:
        assert not read(folder, IDENTITY, 2).last.has_failed  # it is about the newest one
        journal.remove_before(2)

        assert not list(folder.glob("*.failed"))


def test_a_disk_that_fails_at_a_start_is_told_and_not_forgotten_at_the_next(tmp_path, failing):
    """The kernel tells it once, and shows then what it could not write no more."""
    folder = tmp_path / "journal"
    with opened(folder, durability="everysec") as journal:
        append(journal)
    failing.failing["sync"] = BROKEN
    with pytest.raises(OSError, match="Input/output error"):
        sync_all(folder)
    failing.failing.clear()

    sync_all(folder)

    assert read(folder, IDENTITY, 0).last.has_failed


def test_a_mark_that_cannot_be_made_does_not_hide_the_failure(tmp_path, failing, monkeypatch):
    """It is told all the same."""
    monkeypatch.setattr(notes, "MEMORY", tmp_path / "missing")
    with opened(tmp_path / "journal", durability="everysec", sync_delay_s=60) as journal:
        append(journal)
        failing.failing.update(sync_content=BROKEN, create=BROKEN)

        with pytest.raises(ModelReadOnly):
            journal.sync()
