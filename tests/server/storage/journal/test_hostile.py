"""Files from strangers: a typed error that says what was received, and no memory to speak of."""

import msgpack
import pytest
import xxhash
from stepwell_core.errors import JournalInvalid
from stepwell_server.storage.journal import Identity, read
from stepwell_server.storage.journal.format import (
    BLOCK,
    HEAD,
    RECORD_MAGIC,
    SEGMENT_MAGIC,
    aligned,
    packed_entry,
)
from stepwell_server.storage.journal.segment_reader import SCAN_BYTES, Window

from tests.server.storage.journal.journals import IDENTITY, append, contents, kept, opened

HEADER = {
    "format": "stepwell-journal",
    "format_version": 1,
    "model": IDENTITY.model,
    "layout": IDENTITY.layout,
    "incarnation": IDENTITY.incarnation,
    "first_number": 0,
    "durability": "always",
    "boot_id": "b",
    "salt": 5,
}


def padded(content):
    """Whole blocks."""
    return content.ljust(aligned(len(content) + 64), b"\0")


def forge(folder, values, records=b"", number=0, salt=5, name="00000001-0.segment"):
    """Make a segment by hand; its checksums are right."""
    folder.mkdir(exist_ok=True)
    packed = values if isinstance(values, bytes) else msgpack.packb(values)
    entry = packed_entry(SEGMENT_MAGIC, number, number, salt, packed)
    (folder / name).write_bytes(padded(entry) + records)
    return folder / name


def record(packed_map, payload=b"", number=0, payload_nbytes=None):
    """A record by hand; it may say that its payload is larger."""
    nbytes = len(payload) if payload_nbytes is None else payload_nbytes
    checksum = xxhash.xxh3_64_intdigest(payload)
    entry = packed_entry(RECORD_MAGIC, number, 0, 5, packed_map, nbytes, checksum)
    return padded(entry + payload)


@pytest.fixture
def asked(monkeypatch):
    """How many bytes of memory were asked for."""
    sizes = []
    original = Window.of

    def of(self, nbytes):
        sizes.append(nbytes)
        return original(self, nbytes)

    monkeypatch.setattr(Window, "of", of)
    return sizes


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": "other"}, "Received: 'other' version 1"),
        ({"format_version": 2}, "version 2; start the server that wrote it"),
        ({"format_version": True}, "version True"),
        ({"format_version": [1] * 10_000}, "version \\["),
        ({"first_number": 1}, "in its head and in its map"),
        ({"salt": 6}, "in its head and in its map"),
        ({"model": None}, "in strings"),
        ({"boot_id": 3}, "in strings"),
        ({"layout": "other"}, "move it to where it belongs"),
        ({"model": "other"}, "model 'other'"),
        ({"model": "other", "incarnation": "other"}, "model 'other'"),
    ],
)
def test_a_segment_that_is_not_ours_is_refused(tmp_path, change, why):
    """With what was received."""
    path = forge(tmp_path / "journal", HEADER | change)

    with pytest.raises(JournalInvalid, match=why) as caught:
        read(tmp_path / "journal", IDENTITY, 0)

    assert str(path) in caught.value.message
    assert caught.value.details == {"file": str(path), "offset": 0}
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "content", [b"", b"x", b"{}" * 3000, bytes(BLOCK), b"\xff" * 100_000, RECORD_MAGIC * 999]
)
def test_a_file_of_another_program_is_refused(tmp_path, content):
    """Whatever has a segment's name had a whole header once."""
    path = forge(tmp_path / "journal", HEADER)
    path.write_bytes(content)

    with pytest.raises(JournalInvalid, match="no header of a segment"):
        read(tmp_path / "journal", IDENTITY, 0)


def test_a_name_that_says_another_number_is_refused(tmp_path):
    """The names decide which segments are needed."""
    forge(tmp_path / "journal", HEADER, name="00000001-7.segment")

    with pytest.raises(JournalInvalid, match="another first number"):
        read(tmp_path / "journal", IDENTITY, 7)


def test_two_files_of_one_serial_number_are_refused(tmp_path):
    """Nobody knows which is later."""
    forge(tmp_path / "journal", HEADER)
    forge(tmp_path / "journal", HEADER, name="00000001-5.segment")

    with pytest.raises(JournalInvalid, match="serial number"):
        read(tmp_path / "journal", IDENTITY, 0)


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_not_a_file_is_refused(tmp_path, kind):
    """A link may lead anywhere."""
    path = forge(tmp_path / "journal", HEADER)
    path.rename(tmp_path / "elsewhere")
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(JournalInvalid, match="a segment is a file"):
        read(tmp_path / "journal", IDENTITY, 0)


def nested(depth):
    """A list in a list in a list."""
    return b"\x81\xa1a" + b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    ("packed", "why"),
    [
        (nested(40), "at most 32 levels"),
        (nested(100_000), "not msgpack of plain values"),
        (b"\xc1", "not msgpack"),
        (b"\x80\x80", "not msgpack"),
        (b"\x81\xa1", "not msgpack"),
        (b"\x90", "Received: list"),
        (b"\x81\x01\x02", "not msgpack"),
        (b"\x81\xa1a\xd4\x05\x00", "not msgpack"),
        (b"\xdf\xff\xff\xff\xff", "not msgpack"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "not msgpack"),
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path, packed, why):
    """Its checksums are right, so somebody made it so."""
    path = forge(tmp_path / "journal", HEADER, record(packed))

    with pytest.raises(JournalInvalid, match=f"{path.name} at {BLOCK}: .*{why}"):
        kept(tmp_path / "journal")
    forge(tmp_path / "journal", packed)
    with pytest.raises(JournalInvalid, match=why):
        kept(tmp_path / "journal")


@pytest.mark.parametrize("payload_nbytes", [1, BLOCK, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_payload_that_is_longer_than_the_file_is_not_there(tmp_path, asked, payload_nbytes):
    """No memory is taken for it."""
    forge(tmp_path / "journal", HEADER, record(b"\x80", payload_nbytes=payload_nbytes))

    reading = read(tmp_path / "journal", IDENTITY, 0)

    assert contents(reading) == []
    assert reading.torn is not None
    assert max(asked) <= SCAN_BYTES


@pytest.mark.parametrize("field", [5, 6])
def test_lengths_that_cannot_be_are_not_believed(tmp_path, asked, field):
    """Of the map, and the place of the payload; with a checksum that is right."""
    for value in (0, 1, 63, 65, BLOCK, 1 << 24, (1 << 32) - 1):
        fields = list(HEAD.unpack(record(b"\x80")[: HEAD.size]))
        if fields[field] == value:
            continue
        fields[field] = value
        head = HEAD.pack(*fields)[:56]
        checksum = xxhash.xxh3_64_intdigest(head + b"\x80").to_bytes(8, "little")
        forge(tmp_path / "journal", HEADER, head + checksum + b"\x80")

        assert kept(tmp_path / "journal") == []
    assert max(asked) <= SCAN_BYTES


def test_a_file_that_is_mostly_holes_takes_no_memory(tmp_path, asked):
    """It may be larger than any disk; what the model can have at most is known."""
    path = forge(tmp_path / "journal", HEADER, record(b"\x80", payload_nbytes=1 << 42))
    with open(path, "r+b") as file:
        file.truncate(1 << 43)

    reading = read(tmp_path / "journal", IDENTITY, 0, max_payload_bytes=1000)

    with pytest.raises(JournalInvalid, match="at most 1000 bytes of payload"):
        contents(reading)
    assert max(asked) <= SCAN_BYTES


def test_more_than_fits_into_memory_is_an_error(tmp_path):
    """Where nobody said what a model can have."""
    nbytes = 1 << 43
    path = forge(tmp_path / "journal", HEADER, record(b"\x80", payload_nbytes=nbytes))
    with open(path, "r+b") as file:
        file.truncate(nbytes + 2 * BLOCK)

    with pytest.raises(JournalInvalid, match="do not fit into memory"):
        kept(tmp_path / "journal")


def test_another_history_of_the_same_model_does_not_count(tmp_path):
    """Whatever is in it, beside its header."""
    forge(tmp_path / "journal", HEADER | {"incarnation": "other", "layout": "other"}, b"x" * 9000)

    reading = read(tmp_path / "journal", IDENTITY, 3)

    assert contents(reading) == []
    assert (reading.next_number, reading.last) == (3, None)


def test_reading_changes_nothing(tmp_path):
    """Not even a time of change."""
    with opened(tmp_path / "journal", identity=Identity("m", "l", "i")) as journal:
        append(journal, 100_000)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.*")}

    contents(read(tmp_path / "journal", Identity("m", "l", "i"), 0))

    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.*")
    }
