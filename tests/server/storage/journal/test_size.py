"""How large a journal may become where nobody said so."""

import shutil
from collections import namedtuple

import pytest
from stepwell_core.errors import JournalBehind
from stepwell_server.storage.journal import default_max_bytes
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
