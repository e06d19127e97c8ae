"""A journal that is cut or damaged anywhere gives the whole records before, or is refused."""

import os
import shutil

import pytest
from stepwell_core.errors import JournalInvalid
from stepwell_server.storage.journal import read
from stepwell_server.storage.journal.format import BLOCK, HEAD, RECORD_MAGIC, Head

from tests.server.storage.journal.journals import (
    IDENTITY,
    append,
    contents,
    kept,
    opened,
    segment_paths,
)

SIZES = (0, 300, 9000, 70_001, 500)


def written(folder, is_synced):
    """A journal with a record of each size; what is in it, and where each record stands."""
    with opened(folder) as journal:
        records = []
        for nbytes in SIZES:
            records.append(append(journal, nbytes))
            if is_synced:
                journal.sync()
    (path,) = segment_paths(folder)
    content = path.read_bytes()
    heads = [
        (offset, Head(*HEAD.unpack_from(content, offset)))
        for offset in range(0, len(content), BLOCK)
        if content.startswith(RECORD_MAGIC, offset)
    ]
    assert len(heads) == len(records)
    return path, records, heads


@pytest.mark.parametrize("is_synced", [False, True])
def test_a_file_that_is_cut_anywhere_has_the_whole_records_before(tmp_path, is_synced):
    """At every byte of the last three records' heads and maps, and many of their payloads."""
    path, records, heads = written(tmp_path / "journal", is_synced)
    size = path.stat().st_size
    cuts = {size - 1, heads[2][0]}
    for offset, head in heads[2:]:
        cuts |= set(range(offset, offset + HEAD.size + head.map_nbytes + 1))
        cuts |= set(range(offset + head.payload_offset - 70, offset + head.nbytes + 70, 997))
        cuts |= set(range(offset + head.nbytes - 2, offset + head.nbytes + 2))

    for cut in sorted((cut for cut in cuts if cut < size), reverse=True):
        os.truncate(path, cut)
        whole = [
            record
            for record, (offset, head) in zip(records, heads, strict=True)
            if offset + head.nbytes <= cut
        ]
        reading = read(tmp_path / "journal", IDENTITY, 0)

        assert contents(reading) == whole, f"cut at {cut}"
        assert reading.next_number == len(whole)
        torn_at = heads[len(whole)][0] if len(whole) < len(heads) else size
        # A head that is not even there leaves no trace.
        expected = (path, torn_at) if cut >= torn_at + 32 else None
        assert reading.torn in (None, (path, torn_at))
        if cut >= torn_at + HEAD.size:
            assert reading.torn == expected


def flips(head, offset):
    """Every bit of a head and map, and some of the payload's."""
    yield from range(offset * 8, (offset + HEAD.size + head.map_nbytes) * 8)
    start = offset + head.payload_offset
    yield from range(start * 8, (start + head.payload_nbytes) * 8, 40_009)


@pytest.mark.parametrize("index", range(len(SIZES)))
@pytest.mark.parametrize("is_synced", [False, True])
def test_a_flipped_bit_is_never_taken_for_a_record(tmp_path, is_synced, index):
    """If a later record says that this one was on the disk, reading is refused and says where;
    else this is where the journal was torn."""
    path, records, heads = written(tmp_path / "journal", is_synced)
    offset, head = heads[index]

    with open(path, "r+b", buffering=0) as file:
        for bit in flips(head, offset):
            original = os.pread(file.fileno(), 1, bit // 8)
            os.pwrite(file.fileno(), bytes([original[0] ^ 1 << bit % 8]), bit // 8)
            if is_synced and index < len(SIZES) - 1:
                with pytest.raises(
                    JournalInvalid, match=f"{path.name} at {offset}: record {index}"
                ):
                    kept(tmp_path / "journal")
            else:
                reading = read(tmp_path / "journal", IDENTITY, 0)
                assert contents(reading) == records[:index]
                assert reading.next_number == index
            os.pwrite(file.fileno(), original, bit // 8)

    assert kept(tmp_path / "journal") == records


def test_a_flipped_bit_of_a_segments_header_is_refused(tmp_path):
    """All of them: what has a segment's name had a whole header."""
    path, records, _ = written(tmp_path / "journal", True)
    head = Head(*HEAD.unpack_from(path.read_bytes()))

    with open(path, "r+b", buffering=0) as file:
        for bit in flips(head, 0):
            original = os.pread(file.fileno(), 1, bit // 8)
            os.pwrite(file.fileno(), bytes([original[0] ^ 1 << bit % 8]), bit // 8)
            with pytest.raises(JournalInvalid, match="at 0: "):
                kept(tmp_path / "journal")
            os.pwrite(file.fileno(), original, bit // 8)

    assert kept(tmp_path / "journal") == records


def damage(path, offset):
    """Flip a byte."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


def test_a_damaged_record_is_no_matter_where_it_is_not_asked_for(tmp_path):
    """A checkpoint has it, and all before it."""
    path, records, heads = written(tmp_path / "journal", True)
    for place in (heads[1][0] + 3, heads[3][0] + heads[3][1].payload_offset + 5):
        damage(path, place)

    assert kept(tmp_path / "journal", 4) == records[4:]
    with pytest.raises(JournalInvalid, match="record 3"):
        kept(tmp_path / "journal", 2)
    with pytest.raises(JournalInvalid, match="record 1"):
        kept(tmp_path / "journal", 0)


def test_what_was_cut_off_stays_cut_off(tmp_path):
    """Whole records behind a torn one are void once the next segment has their numbers."""
    path, records, heads = written(tmp_path / "journal", False)
    damage(path, heads[2][0] + 5)
    reading = read(tmp_path / "journal", IDENTITY, 0)
    assert contents(reading) == records[:2]
    assert reading.torn == (path, heads[2][0])

    with opened(tmp_path / "journal", reading.next_number) as journal:
        expected = [*records[:2], append(journal, 10)]
        journal.sync()
        assert kept(tmp_path / "journal") == expected
        expected.append(append(journal, 10))
    damage(path, heads[2][0] + 5)  # the torn record is whole again, as if by a late write

    reading = read(tmp_path / "journal", IDENTITY, 0)

    assert contents(reading) == expected
    assert (reading.next_number, reading.torn) == (4, None)


def test_the_end_of_a_segment_before_another_is_not_a_torn_tail(tmp_path):
    """A segment begins when all before it is on the disk."""
    with opened(tmp_path / "journal") as journal:
        append(journal, 10)
        append(journal, 10)
        journal.rotate()
    path = segment_paths(tmp_path / "journal")[0]
    damage(path, 2 * BLOCK + 70)

    with pytest.raises(JournalInvalid, match=f"{path.name} at {2 * BLOCK}: record 1"):
        kept(tmp_path / "journal")
    os.truncate(path, 2 * BLOCK)
    with pytest.raises(JournalInvalid, match=f"{path.name} at {2 * BLOCK}: record 1"):
        kept(tmp_path / "journal")


def test_a_missing_segment_is_refused(tmp_path):
    """In the middle or at the beginning; unless no record of it is asked for."""
    with opened(tmp_path / "journal") as journal:
        for _ in range(3):
            append(journal, 10)
            journal.rotate()
    paths = segment_paths(tmp_path / "journal")
    shutil.move(paths[1], tmp_path / "kept")
    with pytest.raises(JournalInvalid, match="record 1 is missing"):
        kept(tmp_path / "journal")
    assert [number for number, _, _ in kept(tmp_path / "journal", 2)] == [2]

    paths[0].unlink()
    with pytest.raises(JournalInvalid, match="records from 0 to 1 are missing"):
        kept(tmp_path / "journal")


def test_a_damaged_segment_that_is_not_needed_is_no_matter(tmp_path):
    """A later one begins at, or before, the first record that is asked for."""
    with opened(tmp_path / "journal") as journal:
        append(journal, 10)
        journal.rotate()
        expected = append(journal, 10)
    damage(segment_paths(tmp_path / "journal")[0], 9)

    assert kept(tmp_path / "journal", 1) == [expected]
    with pytest.raises(JournalInvalid, match="checksum"):
        kept(tmp_path / "journal", 0)
