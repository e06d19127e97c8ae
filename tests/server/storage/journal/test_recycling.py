"""Old segments go when they are not needed, and one becomes a new one."""

import os

from stepwell_server.storage import disk
from stepwell_server.storage.journal import Identity

from tests.server.storage.journal.journals import IDENTITY, append, kept, opened, segment_paths


def names(folder):
    """All files of a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_segments_go_when_all_their_records_are_older(tmp_path):
    """One that has a record which is needed stays whole."""
    with opened(tmp_path / "journal") as journal:
        for _ in range(3):
            append(journal)
            append(journal)
            journal.rotate()

        journal.remove_before(3)

        assert names(tmp_path / "journal") == [
            ".recycled",
            "00000002-2.segment",
            "00000003-4.segment",
            "00000004-6.segment",
        ]
        assert journal.nbytes == 2 * 3 * 4096 + 4096
    assert [number for number, _, _ in kept(tmp_path / "journal", 3)] == [3, 4, 5]


def test_a_removed_segment_becomes_the_next_one(tmp_path):
    """Its old records are never read again, though they are still in the file."""
    with opened(tmp_path / "journal") as journal:
        for _ in range(10):
            append(journal, 3000)
        journal.remove_before(journal.rotate())
        inode = (tmp_path / "journal" / ".recycled").stat().st_ino

        first = journal.rotate()
        expected = [append(journal, 100)]

        newest = segment_paths(tmp_path / "journal")[-1]
        assert newest.stat().st_ino == inode
        assert newest.stat().st_size >= 11 * 4096
        assert names(tmp_path / "journal") == ["00000002-10.segment", "00000003-10.segment"]
        assert kept(tmp_path / "journal", first) == expected


def test_stale_records_at_the_very_place_and_number_are_not_taken_for_new_ones(tmp_path):
    """A record of the same number where the next one would be: only its salt is another."""
    other = Identity("digits", "layout-hash", "incarnation-2")
    with opened(tmp_path / "journal", identity=other) as journal:
        for _ in range(5):
            append(journal, 100)
        journal.sync()
        journal.remove_before(journal.rotate())
    with opened(tmp_path / "journal") as journal:  # of the other history, numbered from 0 again
        expected = [append(journal, 100), append(journal, 100)]
        journal.sync()

        assert kept(tmp_path / "journal") == expected


def test_a_recycled_file_outlives_the_process(tmp_path):
    """The next journal begins with it."""
    with opened(tmp_path / "journal") as journal:
        append(journal, 100_000)
        journal.remove_before(journal.rotate())
        inode = (tmp_path / "journal" / ".recycled").stat().st_ino
    with opened(tmp_path / "journal", 1) as journal:
        assert segment_paths(tmp_path / "journal")[-1].stat().st_ino == inode
        assert names(tmp_path / "journal") == ["00000002-1.segment", "00000003-1.segment"]
        expected = [append(journal, 10)]

    assert kept(tmp_path / "journal", 1) == expected


def test_one_file_is_kept_the_largest_and_not_all_of_it(tmp_path):
    """At most `max_bytes`."""
    with opened(tmp_path / "journal", max_bytes=200_000) as journal:
        append(journal, 10)
        journal.rotate()
        append(journal, 150_000)
        journal.rotate()
        append(journal, 10)
        journal.remove_before(journal.rotate())
        assert (tmp_path / "journal" / ".recycled").stat().st_size == 4096 * 2 + 151_552

        journal.rotate()
        append(journal, 300_000)
        journal.remove_before(journal.rotate())

        assert (tmp_path / "journal" / ".recycled").stat().st_size == 200_000


def test_removing_again_does_nothing(tmp_path):
    """The segment that is written never goes."""
    with opened(tmp_path / "journal") as journal:
        append(journal)
        journal.remove_before(1)
        journal.remove_before(1)

        assert names(tmp_path / "journal") == ["00000001-0.segment"]
    assert len(kept(tmp_path / "journal", 0, IDENTITY)) == 1


def test_removing_while_an_old_file_is_made_a_segment_leaves_that_file_alone(tmp_path, monkeypatch):
    """They run on two threads. Were another file given the old one's name meanwhile, it would be
    that one which gets the new segment's name."""
    removals = []

    class Between(disk.System):
        def sync(self, descriptor):
            if removals and os.readlink(f"/proc/self/fd/{descriptor}").endswith(".recycled"):
                removals.pop()()
            super().sync(descriptor)

    monkeypatch.setattr(disk, "system", Between())
    with opened(tmp_path / "journal") as journal:
        append(journal)
        second = journal.rotate()
        append(journal)
        third = journal.rotate()
        journal.remove_before(second)
        expected = [append(journal)]
        removals.append(lambda: journal.remove_before(third))
        journal.rotate()
        expected.append(append(journal))

        assert removals == []
        assert names(tmp_path / "journal") == ["00000003-2.segment", "00000004-3.segment"]
        assert kept(tmp_path / "journal", third) == expected


def test_leftovers_of_a_history_whose_numbers_went_further_go_too(tmp_path):
    """After a start from an older checkpoint: else the journal would count as large for ever."""
    other = Identity("digits", "layout-hash", "incarnation-2")
    with opened(tmp_path / "journal", 1000, identity=other) as journal:
        append(journal, 60_000)
        journal.rotate()
        append(journal, 60_000)
    with opened(tmp_path / "journal", 500) as journal:
        append(journal)
        assert journal.nbytes > 120_000

        journal.remove_before(journal.rotate())

        assert journal.nbytes == 4096
        assert names(tmp_path / "journal") == [".recycled", "00000004-501.segment"]
