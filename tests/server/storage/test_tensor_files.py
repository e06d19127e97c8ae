"""Safetensors files as streams: what is written opens elsewhere, what a stranger wrote is checked.

A hostile file is refused by its header: no target is asked for, and memory stays small.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file, save
from stepwell_server.storage import disk
from stepwell_server.storage.tensor_files import (
    MAX_HEADER_BYTES,
    PIECE_BYTES,
    Place,
    TensorFile,
    header_of,
    write_tensors,
)

PLACES = {"a": Place((2, 3), "float32"), "b": Place((), "float64"), "c": Place((0, 5), "float32")}
ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(-0.0),
    "c": np.zeros((0, 5), np.float32),
}
PAYLOAD = b"".join(array.tobytes() for array in ARRAYS.values())


def nothing(*done: object) -> None:
    """Note no progress."""


def entries(**changes: object) -> dict[str, object]:
    """Return the entries of a right header, with changes."""
    right = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F64", "shape": [], "data_offsets": [24, 32]},
        "c": {"dtype": "F32", "shape": [0, 5], "data_offsets": [32, 32]},
    }
    return {**right, **changes}


def entry(**changes: object) -> dict[str, object]:
    """Return the entry of tensor "a", with changes."""
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}


def packed(header: object, payload: bytes = PAYLOAD, length: int | None = None) -> bytes:
    """Return a file; `length` is what it says of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def pieces_of(content: bytes, size: int = 7) -> Iterator[memoryview]:
    """Yield a file in pieces through one buffer, each good until the next."""
    for start in range(0, len(content), size):
        piece = bytearray(content[start : start + size])
        yield memoryview(piece)
        piece[:] = bytes(len(piece))


def read(content: bytes, places: dict[str, Place] = PLACES) -> dict[str, np.ndarray]:
    """Read a file into new arrays, which are made when it asks for them."""
    made: dict[str, np.ndarray] = {}

    def target(name: str) -> memoryview:
        made[name] = np.zeros(places[name].shape, places[name].dtype)
        return memoryview(made[name].reshape(-1).view(np.uint8))

    file = TensorFile(pieces_of(content), len(content), places)
    hashes = file.read(target, nothing)
    assert hashes == {name: xxhash.xxh3_128_hexdigest(a.tobytes()) for name, a in made.items()}
    return made


def assert_refused(content: bytes, match: str, places: dict[str, Place] = PLACES) -> None:
    """Check that a file is refused by its head, with a short reason, before any target is asked."""
    with pytest.raises(ValueError, match=match) as caught:
        TensorFile(pieces_of(content), len(content), places)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 1000


# Written


@pytest.mark.parametrize("is_large", [False, True])
def test_plain_safetensors_opens_what_was_written(tmp_path, is_large):
    """Scalars, empty tensors and names in other scripts too; past the page cache or through it."""
    arrays = {**ARRAYS, 'k"\u00f6/\u65e5:0': np.full((3, 1), np.nan, np.float64)}
    path = tmp_path / "file.safetensors"

    with disk.NewFile(path, is_large=is_large) as file:
        nbytes, hashes = write_tensors(file, arrays, {"format": "pt", "x": "\u00f6"}, nothing)

    loaded = load_file(path)
    assert nbytes == path.stat().st_size
    assert loaded.keys() == hashes.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[name].shape, loaded[name].dtype) == (array.shape, array.dtype)
        assert loaded[name].tobytes() == array.tobytes()
        assert hashes[name] == xxhash.xxh3_128_hexdigest(array.tobytes())


def test_a_tensor_larger_than_a_piece_is_written_and_read_whole(tmp_path):
    """With progress that adds up, and in memory of a piece."""
    array = np.random.default_rng(0).standard_normal(PIECE_BYTES // 8 + 1000)
    path, done = tmp_path / "file.safetensors", []
    with disk.NewFile(path, is_large=True) as file:
        nbytes, hashes = write_tensors(file, {"w": array}, {}, done.append)
    into = np.zeros_like(array)

    places = {"w": Place(array.shape, "float64")}
    file = TensorFile(disk.pieces_of(path), nbytes, places)
    found = file.read(lambda name: memoryview(into.view(np.uint8)), nothing)

    assert (found, sum(done), len(done)) == (hashes, array.nbytes, 2)
    assert into.tobytes() == load_file(path)["w"].tobytes() == array.tobytes()


def test_the_tensors_begin_at_a_multiple_of_eight():
    """So that who maps the file can use them where they lie."""
    for length in range(1, 20):
        header = header_of({"n" * length: Place((1,), "float64")}, {})
        assert len(header) % 8 == 0


# Read


def test_what_the_safetensors_library_writes_is_read(tmp_path):
    """It sorts tensors as it likes; each comes under its name."""
    content = save(ARRAYS, {"note": "from elsewhere"})

    found = read(content)

    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in ARRAYS.items()
    }


def test_a_file_is_read_alike_however_it_comes_in_pieces():
    """A byte at a time, or all at once."""
    content = packed(entries())

    for size in (1, 8, 9, len(content)):
        file = TensorFile(pieces_of(content, size), len(content), PLACES)
        into = bytearray(24)
        file.read({"a": memoryview(into)}.get, nothing)
        assert bytes(into) == ARRAYS["a"].tobytes()


def test_a_header_may_be_padded_and_have_notes():
    """As the format allows."""
    text = json.dumps(entries(__metadata__={"k": "v"})).encode()

    assert read(packed(text + b" " * 100)).keys() == PLACES.keys()


def test_a_header_larger_than_a_piece_is_read_whole(tmp_path):
    """As of a model of very many tensors; the pieces come through one buffer."""
    places = {letter * 3_000_000: Place((2,), "float32") for letter in "abc"}
    arrays = {name: np.ones(2, np.float32) for name in places}
    path = tmp_path / "file.safetensors"
    with disk.NewFile(path, is_large=True) as file:
        nbytes, hashes = write_tensors(file, arrays, {}, nothing)

    found = TensorFile(disk.pieces_of(path), nbytes, places).read(lambda name: None, nothing)

    assert nbytes > 2 * PIECE_BYTES
    assert found == hashes


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "shorter than it says"),
        (b"\x08\0\0", "shorter than it says"),
        (packed(entries(), b"", length=1 << 63), "a header of 9223372036854775808 bytes"),
        (packed(entries(), length=(1 << 64) - 1), "a header of 18446744073709551615 bytes"),
        (packed(entries(), length=MAX_HEADER_BYTES + 1), "a header of 104857601 bytes"),
        (packed(b"{}", b"", length=3), "a header of 3 bytes in a file of 10"),
        (packed(b"", b""), "not JSON"),
        (packed(b"\xff\xfe{}"), "not JSON"),
        (packed(b"{"), "not JSON"),
        (packed(entries(), length=20), "not JSON"),
        (packed(b"[" * 100_000), "not JSON"),
        (packed(b'{"a":' * 50_000), "not JSON"),
        (packed(b"9" * 5000), "not JSON"),
        (packed([]), "not a map"),
        (packed(7), "not a map"),
        (packed(None), "not a map"),
        (packed({}), "missing"),
        (packed(entries(d=entry())), "unknown"),
        (packed(entries(**{"d" * 100_000: entry()})), "unknown"),
        (packed({str(n): entry() for n in range(10_000)}), "unknown"),
    ],
)
def test_a_head_that_is_none_is_refused(content, match):
    """Its length, its form, its names."""
    assert_refused(content, match)


OF_A = r"tensor 'a' is not float32 of shape \(2, 3\)"


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        "F32",
        {},
        entry(dtype="F64"),
        entry(dtype="BF16"),
        entry(dtype="f32"),
        entry(dtype=["F32"]),
        entry(dtype=None),
        entry(shape=[3, 2]),
        entry(shape=[6]),
        entry(shape=[-2, -3]),
        entry(shape=[2, 3, 1]),
        entry(shape=[1 << 62, 1 << 62]),
        entry(shape=[2, 10**4000]),
        entry(shape="23"),
        entry(shape=None),
        entry(data_offsets=None),
        entry(data_offsets=[0]),
        entry(data_offsets=[0, 24, 48]),
        entry(data_offsets=[24, 0]),
        entry(data_offsets=[-24, 0]),
        entry(data_offsets=[0, 23]),
        entry(data_offsets=[0, 25]),
        entry(data_offsets=[0.0, 24.0]),
        entry(data_offsets=["0", "24"]),
        entry(data_offsets=[False, 24]),
        entry(data_offsets={"0": 24}),
    ],
)
def test_an_entry_that_is_not_what_is_expected_is_refused(wrong):
    """Whatever the shape says, it is compared, never multiplied or allocated."""
    assert_refused(packed(entries(a=wrong)), OF_A)


@pytest.mark.parametrize(
    ("changes", "payload", "match"),
    [
        ({"a": entry(data_offsets=[8, 32])}, PAYLOAD, "does not begin where the one before"),
        ({"a": entry(data_offsets=[16, 40])}, PAYLOAD + bytes(8), "does not begin"),
        ({"a": entry(data_offsets=[32, 56])}, PAYLOAD + bytes(24), "does not begin"),
        ({"a": entry(data_offsets=[1 << 70, (1 << 70) + 24])}, PAYLOAD, "does not begin"),
        ({}, PAYLOAD[:-1], "have 32 bytes, and behind its header are 31"),
        ({}, PAYLOAD + b"\0", "have 32 bytes, and behind its header are 33"),
        ({}, b"", "have 32 bytes, and behind its header are 0"),
    ],
)
def test_tensors_that_overlap_leave_gaps_or_do_not_fill_the_file_are_refused(
    changes, payload, match
):
    """End to end they lie, from the first byte to the last."""
    assert_refused(packed(entries(**changes), payload), match)


@pytest.mark.parametrize("is_first_right", [False, True])
def test_a_tensor_that_is_named_twice_counts_as_it_is_named_last(is_first_right):
    """As by JSON; so both readers of this file see the same, or none sees anything."""
    right, wrong = json.dumps(entry()), json.dumps(entry(shape=[3, 2]))
    first, last = (right, wrong) if is_first_right else (wrong, right)
    rest = json.dumps({name: value for name, value in entries().items() if name != "a"})[1:]
    content = packed(f'{{"a":{first},"a":{last},{rest}'.encode())

    if is_first_right:
        assert_refused(content, OF_A)
    else:
        assert read(content)["a"].tobytes() == ARRAYS["a"].tobytes()


def test_a_file_that_ends_early_is_an_error_wherever_it_is_cut():
    """Its size was looked at before, and then there was less; never half of it, and no hang."""
    content = packed(entries())

    for length in range(len(content)):
        with pytest.raises(ValueError, match="shorter than it says"):
            TensorFile(pieces_of(content[:length]), len(content), PLACES).read(
                lambda name: None, nothing
            )


@pytest.mark.parametrize("size", [7, 1 << 20])
def test_a_file_that_goes_on_is_an_error(size):
    """It grew since its size was looked at."""
    content = packed(entries())

    file = TensorFile(pieces_of(content + b"\0", size), len(content), PLACES)
    with pytest.raises(ValueError, match="more in it than it says"):
        file.read(lambda name: None, nothing)


@pytest.mark.parametrize(
    "content",
    [
        packed(b"", b"", length=1 << 63),
        packed(b"{}", b"", length=MAX_HEADER_BYTES),
        packed(entries(a=entry(shape=[1 << 31, 1 << 31]))),
        packed(entries(a=entry(data_offsets=[0, 1 << 62]))),
        packed(b"[" * 1_000_000),
        packed(b"[" + b"[]," * 30_000 + b"[]]"),
    ],
    ids=["length", "length beyond the file", "shape", "offsets", "deep", "wide"],
)
def test_what_a_header_says_takes_no_memory(content):
    """Only its own bytes do, times what JSON makes of them."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"header|tensor"):
            TensorFile(iter([memoryview(content)]), len(content), PLACES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < (1 << 20) + 40 * len(content)


def test_a_length_beyond_the_stream_reads_no_more_than_there_is():
    """The file's size says 100 MB; the stream ends after a few bytes."""
    content = packed(b"{}", b"", length=MAX_HEADER_BYTES)

    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="shorter than it says"):
            TensorFile(pieces_of(content), MAX_HEADER_BYTES + 8, PLACES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 1 << 20
