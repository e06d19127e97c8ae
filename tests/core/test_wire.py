"""The wire: messages cut anywhere, and bytes that are no message."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_core import wire
from stepwell_core.errors import MalformedMessage, PayloadSizeMismatch, StepwellError
from stepwell_core.layout import Layout, Tensor, byte_views
from stepwell_core.wire import MAX_HEADER_BYTES, Decoder, encode

HEADER = {"protocol": 1, "worker": "w0", "weight": 0.5, "tensors": ["kernel", "bias"]}
PACKED = msgpack.packb(HEADER)


def pattern(size: int) -> bytes:
    """Return bytes in which a shifted or repeated part shows."""
    return bytes((i * i + i // 251) % 256 for i in range(size))


def cut(message: bytes, places: list[int]) -> Iterator[bytes]:
    """Yield the message in pieces that end at the given places."""
    ends = sorted({0, len(message), *(place % (len(message) + 1) for place in places)})
    for start, stop in pairwise(ends):
        yield message[start:stop]


def buffers(sizes: list[int]) -> tuple[bytearray, list[memoryview]]:
    """Return one buffer, and views that cover it end to end."""
    memory = bytearray(b"\xee") * sum(sizes)
    starts = np.cumsum([0, *sizes]).tolist()
    return memory, [memoryview(memory)[a:b] for a, b in pairwise(starts)]


def read_by_feeding(pieces: Iterator[bytes], views: list[memoryview]) -> Decoder:
    """Feed every piece; receive as soon as the header is there."""
    decoder, is_receiving = Decoder(), False
    for piece in pieces:
        decoder.feed(piece)
        if decoder.header is not None and not is_receiving:
            decoder.receive(views)
            is_receiving = True
    decoder.finish()
    return decoder


def read_into_target(pieces: Iterator[bytes], views: list[memoryview]) -> Decoder:
    """Feed until the header is there; then fill `target` piece by piece, as a socket does."""
    decoder, is_receiving = Decoder(), False
    for piece in pieces:
        left = memoryview(piece)
        if not is_receiving:
            decoder.feed(left)
            if decoder.header is not None:
                decoder.receive(views)
                is_receiving = True
            continue
        while left:
            target = decoder.target()
            if not target:
                decoder.feed(left)
                break
            count = min(len(target), len(left))
            target[:count] = left[:count]
            decoder.advance(count)
            left = left[count:]
    decoder.finish()
    return decoder


def decoded(message: bytes, size: int = 0) -> dict[str, Any]:
    """Return the header of a message whose payload has `size` bytes."""
    _, views = buffers([size])
    header = read_by_feeding(iter([message]), views).header
    assert header is not None
    return header


# Messages

view_sizes = st.lists(st.integers(0, 700), max_size=5)
bin_sizes = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 900)), max_size=12)


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes, list[int]]:
    """Draw a message, its payload and the views that take it: bins and views do not agree."""
    sizes = draw(view_sizes)
    payload = pattern(sum(sizes))
    message, start = PACKED, 0
    for size in draw(bin_sizes):
        piece = payload[start : start + size]
        message += draw(st.sampled_from([msgpack.packb, bin_16, bin_32]))(piece)
        start += len(piece)
    if start < len(payload):
        message += msgpack.packb(payload[start:])
    message += msgpack.packb(b"") * draw(st.integers(0, 2))
    return message, payload, sizes


def bin_16(data: bytes) -> bytes:
    """Return a `bin` with two bytes of length, however short it is."""
    return struct.pack(">BH", 0xC5, len(data)) + data


def bin_32(data: bytes) -> bytes:
    """Return a `bin` with four bytes of length, however short it is."""
    return struct.pack(">BI", 0xC6, len(data)) + data


@given(message=messages(), places=st.lists(st.integers(0, 1 << 20), max_size=20))
def test_a_message_in_any_pieces_is_the_message(
    message: tuple[bytes, bytes, list[int]], places: list[int]
) -> None:
    """Pieces, bins and views end anywhere: header and payload come out whole, both ways."""
    for read in (read_by_feeding, read_into_target):
        # Arrange
        body, payload, sizes = message
        memory, views = buffers(sizes)

        # Act
        decoder = read(cut(body, places), views)

        # Assert
        assert decoder.header == HEADER
        assert decoder.is_complete
        assert bytes(memory) == payload


@given(message=messages())
def test_a_message_byte_by_byte_is_the_message(message: tuple[bytes, bytes, list[int]]) -> None:
    """The smallest pieces there are, both ways."""
    for read in (read_by_feeding, read_into_target):
        # Arrange
        body, payload, sizes = message
        memory, views = buffers(sizes)

        # Act
        decoder = read((body[i : i + 1] for i in range(len(body))), views)

        # Assert
        assert decoder.header == HEADER
        assert bytes(memory) == payload


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 200_000])
def test_every_width_of_bin_that_msgpack_writes_is_read(size: int) -> None:
    """`msgpack.packb` takes bin 8, 16 or 32 by size; all are payload."""
    # Arrange
    payload = pattern(size)
    memory, views = buffers([size])

    # Act
    read_by_feeding(cut(PACKED + msgpack.packb(payload), [len(PACKED) + 2]), views)

    # Assert
    assert bytes(memory) == payload


def test_what_is_encoded_is_decoded_into_arenas() -> None:
    """A model's arenas travel without a copy on the sender's side, empty ones included."""
    # Arrange
    layout = Layout(
        [Tensor("a", (5,), "float32"), Tensor("b", (3,), "float64"), Tensor("c", (0,), "float64")]
    )
    sent = layout.flatten({"a": np.arange(5, dtype="f4"), "b": np.arange(3.0), "c": np.empty(0)})
    received = layout.new_arenas()

    # Act
    parts = encode(HEADER, byte_views(sent))
    read_into_target(iter([bytes(part) for part in parts]), byte_views(received))

    # Assert
    assert wire.nbytes(parts) == sum(len(bytes(part)) for part in parts)
    assert all(np.array_equal(received[dtype], sent[dtype]) for dtype in sent)
    assert any(np.shares_memory(np.frombuffer(part, "u1"), sent["float32"]) for part in parts[1:])


def test_views_of_wider_elements_are_taken_as_their_bytes() -> None:
    """A view that counts floats and not bytes is neither sent nor filled in part."""
    # Arrange
    sent, received = np.arange(6, dtype="f8"), np.zeros(6, "f8")

    # Act
    parts = encode(HEADER, [memoryview(sent)])
    read_into_target(iter([bytes(part) for part in parts]), [memoryview(received)])

    # Assert
    assert wire.nbytes(parts) == len(PACKED) + 5 + 48
    assert received.tolist() == sent.tolist()


def test_a_large_payload_is_split_into_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    """One `bin` has a limit; what is longer goes on in the next."""
    # Arrange
    monkeypatch.setattr(wire, "MAX_BIN_BYTES", 100)
    payload = pattern(250)
    memory, views = buffers([120, 130])

    # Act
    parts = encode(HEADER, [memoryview(payload)])
    read_by_feeding(iter([bytes(part) for part in parts]), views)

    # Assert
    assert [len(part) for part in parts[1:]] == [5, 100, 5, 100, 5, 50]
    assert bytes(memory) == payload


def test_any_msgpack_library_reads_a_message() -> None:
    """A message is a plain msgpack stream."""
    # Arrange
    body = b"".join(bytes(part) for part in encode(HEADER, [memoryview(pattern(300))]))

    # Act
    unpacker = msgpack.Unpacker()
    unpacker.feed(body)

    # Assert
    assert list(unpacker) == [HEADER, pattern(300)]


def test_the_target_is_empty_before_and_after_the_payload() -> None:
    """`target` offers what is left of a bin in a view, or of a length, and then nothing."""
    # Arrange
    memory, views = buffers([2, 0, 3])
    decoder = Decoder()
    decoder.feed(PACKED)
    decoder.receive(views)

    # Act
    sizes = []
    for piece in (b"\xc4", b"\x05", b"ab", b"cde"):
        sizes.append(len(decoder.target()))
        decoder.target()[: len(piece)] = piece
        decoder.advance(len(piece))

    # Assert
    assert sizes == [1, 1, 2, 3]
    assert bytes(memory) == b"abcde"
    assert decoder.is_complete
    assert not decoder.target()
    decoder.finish()


def test_the_decoder_says_how_much_is_missing() -> None:
    """Of the payload alone, whatever it is cut into; who fills windows goes by it."""
    payload = pattern(10)
    packed = PACKED + msgpack.packb(payload[:4]) + msgpack.packb(payload[4:])
    _, views = buffers([3, 7])
    decoder = Decoder()
    decoder.feed(PACKED)
    before = decoder.missing
    decoder.receive(views)

    found = [decoder.missing]
    for index in range(len(PACKED), len(packed)):
        decoder.feed(packed[index : index + 1])
        found.append(decoder.missing)

    assert (before, found) == (0, [10, 10, 10, 9, 8, 7, 6, 6, 6, 5, 4, 3, 2, 1, 0])


def test_a_message_without_payload_is_complete() -> None:
    """Zero bins are a payload of zero bytes; so is an empty one."""
    # Act
    headers = [decoded(PACKED), decoded(PACKED + b"\xc4\x00"), decoded(PACKED + b"\xc5\0\0" * 3)]

    # Assert
    assert headers == [HEADER] * 3


def test_the_largest_header_is_taken_and_one_byte_more_is_not() -> None:
    """The limit is exact, for sender and receiver, in one piece or in many."""
    # Arrange
    room = MAX_HEADER_BYTES - len(msgpack.packb({"a": "x" * 70_000})) + 70_000
    largest, larger = {"a": "x" * room}, {"a": "x" * (room + 1)}

    # Act
    body = bytes(encode(largest)[0])
    headers = [
        read_by_feeding(cut(body, places), []).header for places in ([], [1, 9, 70_000, 262_000])
    ]

    # Assert
    assert len(body) == MAX_HEADER_BYTES
    assert headers == [largest, largest]
    with pytest.raises(MalformedMessage, match="at most 262144 bytes"):
        encode(larger)
    for places in ([], [1, 9, 70_000, 262_143]):
        with pytest.raises(MalformedMessage, match="at most 262144 bytes"):
            read_by_feeding(cut(msgpack.packb(larger), places), [])


# Bytes that are no message

MAP = b"\x81\xa1a"  # {"a": what follows}
HOSTILE: dict[str, tuple[bytes, type[StepwellError]]] = {
    "nothing": (b"", MalformedMessage),
    "half_a_header": (PACKED[:-1], MalformedMessage),
    "a_list": (msgpack.packb([HEADER]), MalformedMessage),
    "a_number": (b"\x07", MalformedMessage),
    "a_string": (msgpack.packb("header"), MalformedMessage),
    "bytes": (msgpack.packb(b"header"), MalformedMessage),
    "json": (b'{"protocol": 1}', MalformedMessage),
    "a_byte_that_means_nothing": (b"\xc1", MalformedMessage),
    "a_number_as_key": (msgpack.packb({1: 2}), MalformedMessage),
    "bytes_as_key": (b"\x81\xc4\x01a\x01", MalformedMessage),
    "empty_bytes_as_key": (b"\x81\xc4\x00\x01", MalformedMessage),
    "nothing_as_key": (b"\x81\xc0\x01", MalformedMessage),
    "a_list_as_key": (b"\x81\x90\x01", MalformedMessage),
    "a_number_as_key_further_in": (MAP + msgpack.packb([{1: 2}]), MalformedMessage),
    "empty_bytes_as_key_further_in": (MAP + b"\x81\xc4\x00\x01", MalformedMessage),
    "bytes_in_the_header": (MAP + b"\xc4\x01a", MalformedMessage),
    "an_extension": (MAP + b"\xd4\x05a", MalformedMessage),
    "an_empty_extension": (MAP + b"\xc7\x00\x05", MalformedMessage),
    "a_time": (MAP + b"\xd6\xff\x00\x00\x00\x00", MalformedMessage),
    "an_extension_alone": (b"\xc7\x00\x05", MalformedMessage),
    "a_string_that_is_no_text": (MAP + b"\xa1\xff", MalformedMessage),
    "half_a_surrogate": (MAP + b"\xa3\xed\xa0\x80", MalformedMessage),
    "a_nest": (MAP + b"\x91" * 40 + b"\x90", MalformedMessage),
    "a_deep_nest": (MAP + b"\x91" * 100_000, MalformedMessage),
    "a_deep_nest_of_maps": (MAP * 60_000, MalformedMessage),
    "a_string_for_a_bin": (PACKED + msgpack.packb("payload!"), MalformedMessage),
    "a_map_for_a_bin": (PACKED + PACKED, MalformedMessage),
    "an_extension_for_a_bin": (PACKED + b"\xc7\x08\x05payload!", MalformedMessage),
    "no_payload": (PACKED, PayloadSizeMismatch),
    "a_payload_too_short": (PACKED + msgpack.packb(b"payload"), PayloadSizeMismatch),
    "a_payload_too_long": (PACKED + msgpack.packb(b"payload!!"), PayloadSizeMismatch),
    "a_bin_too_many": (
        PACKED + msgpack.packb(b"payload!") + msgpack.packb(b"!"),
        PayloadSizeMismatch,
    ),
    "an_announced_payload": (PACKED + b"\xc4\x08pay", PayloadSizeMismatch),
    "an_announced_bin": (PACKED + b"\xc6\x00\x00", PayloadSizeMismatch),
    "half_a_bin_behind": (PACKED + msgpack.packb(b"payload!") + b"\xc5\x00", MalformedMessage),
    "text_behind": (PACKED + msgpack.packb(b"payload!") + b"\n", MalformedMessage),
    "bins_without_end": (PACKED + b"\xc4\x00" * 70_000, MalformedMessage),
    "bins_without_end_behind": (
        PACKED + msgpack.packb(b"payload!") + b"\xc4\x00" * 70_000,
        MalformedMessage,
    ),
}


@pytest.mark.parametrize("places", [[], list(range(40))], ids=["whole", "in pieces"])
@pytest.mark.parametrize(("body", "error"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_message_is_a_typed_error(
    body: bytes, error: type[StepwellError], places: list[int]
) -> None:
    """Whatever the bytes, and however they are cut, the error is short and has a type."""
    for read in (read_by_feeding, read_into_target):
        # Arrange
        _, views = buffers([3, 0, 5])

        # Act
        with pytest.raises(StepwellError) as refusal:
            read(cut(body, places), views)

        # Assert
        assert type(refusal.value) is error
        assert len(refusal.value.message) < 250


BOMBS = {
    "a_list_of_four_billion": MAP + b"\xdd\xff\xff\xff\xff",
    "a_list_as_long_as_a_header": MAP + b"\xdd\x00\x03\xff\xff" + b"\x01" * 1000,
    "lists_in_lists": MAP + b"\xdd\x00\x03\xff\xff" * 900,
    "a_map_of_four_billion": b"\xdf\xff\xff\xff\xff",
    "maps_in_maps": (b"\xdf\x00\x00\x0f\xff\xa1a") * 900,
    "a_string_of_four_billion": MAP + b"\xdb\xff\xff\xff\xff" + b"x" * 1000,
    "a_bin_of_four_billion": MAP + b"\xc6\xff\xff\xff\xff" + b"x" * 1000,
    "an_extension_of_four_billion": MAP + b"\xc9\xff\xff\xff\xff\x05" + b"x" * 1000,
    "a_stream_without_end": MAP + b"\xdd\xff\xff\xff\xff" + b"\x01" * 10**6,
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_an_announced_length_takes_no_memory(body: bytes) -> None:
    """Memory is in proportion to the bytes that came, never to the length that they announce."""
    # Arrange
    tracemalloc.start()

    # Act
    try:
        with pytest.raises(MalformedMessage):
            read_by_feeding(cut(body, list(range(0, len(body), 10_000))), [])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # Assert
    assert peak < 6 * MAX_HEADER_BYTES


def test_a_bin_longer_than_the_payload_is_refused_before_it_comes() -> None:
    """Four bytes of length are enough to see that the payload cannot be right."""
    # Arrange
    decoder = Decoder()
    decoder.feed(PACKED)
    decoder.receive([memoryview(bytearray(8))])

    # Act
    with pytest.raises(PayloadSizeMismatch) as refusal:
        decoder.feed(b"\xc6\x00\x00\x00\x09")

    # Assert
    assert refusal.value.details == {"expected": 8, "received": 9}


def test_a_payload_that_nobody_asked_for_is_not_kept() -> None:
    """A body of gigabytes behind the header of a call without payload takes no memory."""
    # Arrange
    decoder = Decoder()
    decoder.feed(PACKED)
    decoder.feed(b"")

    # Act
    with pytest.raises(PayloadSizeMismatch) as refusal:
        decoder.feed(msgpack.packb(b"payload!"))

    # Assert
    assert refusal.value.details == {"expected": 0, "received": 8}


def test_ordinary_senders_have_bins_enough() -> None:
    """A `bin` a tensor and a `bin` each 4 KiB are both far within the limit."""
    # Arrange
    pages = [pattern(4096)] * 300
    memory, views = buffers([4096 * 300])

    # Act
    read_by_feeding(iter([PACKED, *(msgpack.packb(page) for page in pages)]), views)

    # Assert
    assert bytes(memory) == b"".join(pages)
