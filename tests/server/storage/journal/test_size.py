"""How large a journal may become where nobody said so."""

import shutil
from collections import namedtuple

import pytest
from stepwell_core.errors import JournalBehind
from stepwell_server.storage import disk
from stepwell_server.storage.journal import default_max_bytes, segment
from stepwell_server.storage.journal import folder as files

from tests.server.storage.journal.journals import append, opened

Usage = namedtuple("Usage", "total used free")


def test_the_default_size_is_a_part_of_the_disk(tmp_path, monkeypatch):
    """8 GiB at most, and 16 MiB at least: below the size of an empty one no push would ever fit."""
    for free, most in [(8192, 16 << 20), (1 << 30, 256 << 20), (1 << 40, 8 << 30)]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(0, 0, free))
        assert default_max_bytes(tmp_path) == most


def test_the_default_size_is_taken_anew_with_each_segment(tmp_path, monkeypatch):
    """A disk that was full at the start has room later."""
    monkeypatch.setattr(files, "LEAST_JOURNAL_BYTES", 8192)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    with opened(tmp_path / "journal", max_bytes=None) as journal:
        append(journal, 60_000)
        with pytest.raises(JournalBehind):
            append(journal)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 1 << 30))

        journal.remove_before(journal.rotate())

        assert not journal.is_large
        append(journal)


@pytest.mark.parametrize(
    ("nbytes", "at_first"), [(16, 65_536), (1000, 65_536), (100_000, 110_592), (1 << 20, 1_056_768)]
)
def test_a_journal_takes_the_room_that_it_uses_and_at_most_as_much_again(
    tmp_path, nbytes, at_first
):
    """Hundreds of small models have place on a small disk; a busy one seldom asks for room."""
    sizes = []
    with opened(tmp_path / "journal", max_bytes=None) as journal:
        for _ in range(30):
            append(journal, nbytes)
            (path,) = (tmp_path / "journal").glob("*.segment")
            sizes.append(path.stat().st_size)  # an allocation's; blocks have those of the tree, too
            assert sizes[-1] <= max(2 * journal.nbytes, at_first)
    assert sizes[0] == at_first
    assert len(set(sizes)) <= 10  # how often it asked


@pytest.mark.parametrize(
    ("max_bytes", "most"), [(1 << 30, 1 << 20), (4 << 20, 512 << 10), (1 << 17, 64 << 10)]
)
def test_a_large_journal_takes_no_more_than_a_step_at_once(tmp_path, monkeypatch, max_bytes, most):
    """A part of what it may have, and never all of the disk."""
    monkeypatch.setattr(segment, "MOST_STEP_BYTES", 1 << 20)
    asked = []
    allocate = disk.System.allocate

    def asking(self, descriptor, offset, nbytes):
        asked.append(nbytes)
        allocate(self, descriptor, offset, nbytes)

    monkeypatch.setattr(disk.System, "allocate", asking)
    with opened(tmp_path / "journal", max_bytes=max_bytes) as journal:
        for _ in range(80):
            append(journal, 50_000)
            if journal.is_large:
                journal.remove_before(journal.rotate())

    assert max(asked) == most
