"""Records are read back as they were appended, in order, whatever their size."""

import mmap
import os
import random

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core.errors import JournalBehind, JournalInvalid, ShuttingDown
from stepwell_server.storage import disk
from stepwell_server.storage.journal import (
    Identity,
    Journal,
    boot_id,
    read,
    remove_all,
    sync_all,
)

from tests.server.storage.journal.journals import (
    IDENTITY,
    append,
    contents,
    kept,
    noise,
    opened,
    segment_paths,
)

SIZES = [0, 1, 63, 64, 4096, 65535, 65536, 65537, 69632, 5_000_001]


def test_records_are_read_back_as_they_were_appended(tmp_path):
    """Of every size around the limits: none, small, and large ones that are written directly."""
    with opened(tmp_path / "journal", max_bytes=1 << 30) as journal:
        expected = [append(journal, nbytes) for nbytes in SIZES]
        journal.sync()

        reading = read(tmp_path / "journal", IDENTITY, 0)

        assert contents(reading) == expected
    assert reading.next_number == journal.next_number == len(SIZES)
    assert reading.torn is None
    assert kept(tmp_path / "journal") == expected


@given(
    records=st.lists(
        st.tuples(st.integers(0, 200_000), st.integers(1, 5), st.booleans()), max_size=8
    ),
    first_number=st.integers(0, 1 << 60),
    seed=st.integers(0, 99),
)
def test_any_records_in_any_segments_are_read_from_any_number(
    tmp_path_factory, records, first_number, seed
):
    """Segments end wherever the lane wants; reading may begin in the middle of one."""
    folder = tmp_path_factory.mktemp("data") / "journal"
    expected = []
    with opened(folder, first_number, max_bytes=1 << 30) as journal:
        for nbytes, pieces, is_rotated in records:
            expected.append(append(journal, nbytes, pieces))
            if is_rotated:
                assert journal.rotate() == journal.next_number

    begin = seed % (len(records) + 1)
    reading = read(folder, IDENTITY, first_number + begin)

    assert contents(reading) == expected[begin:]
    assert reading.next_number == first_number + len(records)
    assert reading.torn is None


@pytest.mark.parametrize("misaligned", [0, 1, 64, 4095])
@pytest.mark.parametrize("nbytes", [65536, 100_000, 9_000_001])
def test_memory_may_lie_anywhere(tmp_path, misaligned, nbytes):
    """Aligned memory is written as it lies, other memory through a buffer."""
    memory = mmap.mmap(-1, nbytes + 8192)
    view = memoryview(memory)[misaligned : misaligned + nbytes]
    view[:] = noise(nbytes)

    with opened(tmp_path / "journal", max_bytes=1 << 30) as journal:
        journal.append({}, [view.toreadonly()])

    assert kept(tmp_path / "journal") == [(0, {}, noise(nbytes))]


def test_arrays_of_any_dtype_are_written(tmp_path):
    """A gradient in two arenas is two views of other types than bytes."""
    arrays = np.arange(50_000, dtype=np.float32), np.arange(1001, dtype=np.float64)

    with opened(tmp_path / "journal") as journal:
        journal.append({}, [memoryview(array) for array in arrays])

    ((_, _, payload),) = kept(tmp_path / "journal")
    assert payload == arrays[0].tobytes() + arrays[1].tobytes()


def test_a_checksum_that_is_known_is_taken(tmp_path):
    """Whoever has it spares a pass over the payload; a wrong one makes the record worthless."""
    payload = noise(100_000)

    with opened(tmp_path / "journal") as journal:
        journal.append({}, [memoryview(payload)], checksum=xxhash.xxh3_64_intdigest(payload))
        journal.append({}, [memoryview(payload)], checksum=1)

    assert [number for number, _, _ in kept(tmp_path / "journal")] == [0]


def test_a_payload_can_be_used_in_place(tmp_path):
    """It is writable, and aligned for any dtype."""
    with opened(tmp_path / "journal") as journal:
        append(journal, 4096)
        append(journal, 70_000)

    for record in read(tmp_path / "journal", IDENTITY, 0):
        array = np.frombuffer(record.payload, np.uint8)
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0


def test_a_small_record_costs_one_write(tmp_path, monkeypatch):
    """And nothing else that changes the disk."""
    calls = []
    with opened(tmp_path / "journal") as journal:
        append(journal, 4096)
        for name in ("pwrite", "allocate", "sync_content", "sync"):
            original = getattr(disk.System, name)

            def call(self, *args, name=name, original=original):
                calls.append(name)
                return original(self, *args)

            monkeypatch.setattr(disk.System, name, call)

        append(journal, 4096)

        assert calls == ["pwrite"]


def test_several_appends_take_one_sync(tmp_path, monkeypatch):
    """Group commit; and a sync with nothing to do does nothing."""
    calls = []
    original = disk.System.sync_content
    monkeypatch.setattr(
        disk.System, "sync_content", lambda self, fd: (calls.append(fd), original(self, fd))
    )
    with opened(tmp_path / "journal") as journal:
        journal.sync()
        for _ in range(5):
            append(journal, 1000)
        journal.sync()
        journal.sync()

        assert len(calls) == 1


def test_a_file_system_without_direct_writes_is_written_as_well(tmp_path, monkeypatch):
    """Some refuse them at opening, some at the first write."""
    original = disk.System.open, disk.System.pwritev
    direct = set()

    def refuse_open(self, path, flags, mode=0o666):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return original[0](self, path, flags, mode)

    def note_open(self, path, flags, mode=0o666):
        descriptor = original[0](self, path, flags, mode)
        (direct.add if flags & os.O_DIRECT else direct.discard)(descriptor)
        return descriptor

    def refuse_write(self, descriptor, parts, offset):
        if descriptor in direct:
            raise OSError(22, "Invalid argument")
        return original[1](self, descriptor, parts, offset)

    for name, patches in {
        "open": {"open": refuse_open},
        "write": {"open": note_open, "pwritev": refuse_write},
    }.items():
        with monkeypatch.context() as context:
            for method, double in patches.items():
                context.setattr(disk.System, method, double)
            with opened(tmp_path / name) as journal:
                expected = [append(journal, nbytes) for nbytes in (70_000, 10, 80_001)]

        assert kept(tmp_path / name) == expected


def test_writes_that_are_cut_short_are_gone_on_with(tmp_path, monkeypatch):
    """The kernel may write less than it was given: some parts, and some bytes of one."""
    original = disk.System.pwrite
    rng = random.Random(1)

    def write_some(self, descriptor, content, offset):
        count = rng.randint(1, len(content))
        return original(self, descriptor, memoryview(content)[:count], offset)

    def write_some_parts(self, descriptor, parts, offset):
        memory = mmap.mmap(-1, sum(map(len, parts)))
        memory[:] = b"".join(parts)
        count = rng.randint(1, len(memory)) & rng.choice((-1, -512, -4096))
        return original(self, descriptor, memoryview(memory)[: count or 512], offset)

    monkeypatch.setattr(disk.System, "pwrite", write_some)
    monkeypatch.setattr(disk.System, "pwritev", write_some_parts)
    with opened(tmp_path / "journal") as journal:
        expected = [append(journal, nbytes, 3) for nbytes in (1000, 70_001, 200_000, 400_000)]

    assert kept(tmp_path / "journal") == expected


def test_a_large_record_costs_one_write(tmp_path, monkeypatch):
    """Head, payload in place, and the rest of its last block."""
    parts_of = []
    original = disk.System.pwritev
    monkeypatch.setattr(
        disk.System,
        "pwritev",
        lambda self, fd, parts, offset: (
            parts_of.append([len(part) for part in parts]),
            original(self, fd, parts, offset),
        )[1],
    )
    memory = memoryview(mmap.mmap(-1, 1 << 20))
    with opened(tmp_path / "journal") as journal:
        journal.append({}, [memory[:1_000_000]])
        journal.append({}, [memory[:65_536], memory[4096:200_001], memory[:70_000]])

    assert parts_of == [[4096, 999_424, 4096], [4096, 65_536, 192_512, 73_728]]
    assert [len(payload) for _, _, payload in kept(tmp_path / "journal")] == [1_000_000, 331_441]


def test_an_unknown_allocation_is_gone_without(tmp_path, monkeypatch):
    """A file system may not have it."""

    def refuse(self, descriptor, offset, nbytes):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(disk.System, "allocate", refuse)
    with opened(tmp_path / "journal") as journal:
        expected = [append(journal, nbytes) for nbytes in (1000, 70_001)]

    assert kept(tmp_path / "journal") == expected


def test_a_new_journal_goes_on_where_the_last_one_ended(tmp_path):
    """In a segment of its own."""
    with opened(tmp_path / "journal") as journal:
        expected = [append(journal, 10)]
    with opened(tmp_path / "journal", 1, "everysec") as journal:
        expected.append(append(journal, 10))

    reading = read(tmp_path / "journal", IDENTITY, 0)

    assert contents(reading) == expected
    assert reading.last is not None
    assert (reading.last.durability, reading.last.boot_id) == ("everysec", boot_id())
    assert [path.name for path in segment_paths(tmp_path / "journal")] == [
        "00000001-0.segment",
        "00000002-1.segment",
    ]


def test_another_history_begins_in_a_segment_of_its_own(tmp_path):
    """Its records are numbered on, and each history is read alone."""
    other = Identity("digits", "layout-hash", "incarnation-2")
    with opened(tmp_path / "journal") as journal:
        first = append(journal)
        assert journal.rotate(other) == 1
        second = append(journal)
        journal.rotate()
        third = append(journal)

    assert kept(tmp_path / "journal") == [first]
    assert kept(tmp_path / "journal", 1, other) == [second, third]


def test_a_history_may_be_gone_back_to(tmp_path):
    """As when a restore failed after the other one was begun."""
    other = Identity("digits", "layout-hash", "incarnation-2")
    with opened(tmp_path / "journal") as journal:
        expected = [append(journal)]
        journal.rotate(other)
        journal.rotate(IDENTITY)
        expected.append(append(journal))

    assert kept(tmp_path / "journal") == expected


def test_a_journal_that_grows_too_large_takes_no_more(tmp_path):
    """Until old segments go; one that was taken may be of any size."""
    with opened(tmp_path / "journal", max_bytes=100_000) as journal:
        assert not journal.is_large
        append(journal, 110_000)
        assert journal.is_large
        append(journal, 300_000)

        with pytest.raises(JournalBehind, match="may have 200000"):
            journal.append({}, [])
        journal.remove_before(journal.rotate())

        assert journal.nbytes == 4096
        assert append(journal)[0] == 2


def test_a_header_that_no_reader_would_take_is_refused(tmp_path):
    """Before anything is written."""
    with opened(tmp_path / "journal") as journal:
        with pytest.raises(JournalInvalid, match="at most"):
            journal.append({"x": "y" * (5 << 20)})
        expected = append(journal)

    assert kept(tmp_path / "journal") == [expected]


def test_nothing_goes_on_after_close(tmp_path):
    """Closing twice is closing once."""
    with opened(tmp_path / "journal", durability="everysec") as journal:
        append(journal)
        journal.close()
        journal.close()

        with pytest.raises(ShuttingDown):
            journal.append({})
        with pytest.raises(ShuttingDown):
            journal.rotate()
        journal.sync()


def test_a_journal_that_is_not_there_is_empty(tmp_path):
    """A model from before there were journals, or one under `memory`."""
    sync_all(tmp_path / "journal")
    remove_all(tmp_path / "journal")
    reading = read(tmp_path / "journal", IDENTITY, 7)

    assert contents(reading) == []
    assert (reading.next_number, reading.torn, reading.last) == (7, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_is_removed_whole(tmp_path):
    """With whatever is in its folder."""
    with opened(tmp_path / "journal") as journal:
        append(journal)

    remove_all(tmp_path / "journal")

    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_segments_are_left_alone(tmp_path):
    """Leftovers of our own go when the next journal is opened."""
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    (folder / ".tmp-1").write_text("x")

    with opened(folder) as journal:
        append(journal)

    assert sorted(path.name for path in folder.iterdir()) == ["00000001-0.segment", "notes.txt"]
    assert len(kept(folder)) == 1


def test_a_journal_is_closed_without_its_slack(tmp_path):
    """The room that was taken in advance goes back to the disk."""
    journal = Journal(tmp_path / "journal", IDENTITY, 0, "always", 1 << 20)
    append(journal, 10)
    assert segment_paths(tmp_path / "journal")[0].stat().st_size > 50_000

    journal.close()

    assert segment_paths(tmp_path / "journal")[0].stat().st_size == 8192
