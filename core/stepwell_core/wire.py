"""What travels: one map of header fields, then the raw bytes of tensors, as a msgpack stream.

    message = header payload
    header  = one msgpack map with string keys, at most 256 KiB
    payload = zero or more msgpack `bin` objects; their bytes, concatenated, are the payload

A payload is little-endian, C order, tensors in layout order, float32 tensors before float64 ones.
Any msgpack library in any language can write and read it; `Decoder` takes a `bin` cut at any place.

Nothing here does I/O. `encode` returns views that the caller sends; `Decoder` says where the next
bytes belong, so that a socket can put them there without a copy on the way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import msgpack

from stepwell_core.errors import MalformedMessage, PayloadSizeMismatch

PROTOCOL = 1
MEDIA_TYPE = "application/msgpack"
MAX_HEADER_BYTES = 256 * 1024
MAX_HEADER_DEPTH = 32
MAX_BIN_BYTES = (1 << 32) - 1

# A `bin` costs the receiver microseconds, so a payload in bins of one byte would keep it busy for
# minutes. One for each tensor and one for each 4 KiB is more than any sender needs.
MAX_SMALL_BINS = 1 << 16
LEAST_BIN_BYTES = 4096

Kind = Literal["gradient", "delta"]
"""What the tensors of a push are: a gradient, or `w_local - w_pulled` after local steps."""

KINDS: tuple[str, ...] = get_args(Kind)

Part = bytes | memoryview

_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_BIN_32 = struct.Struct(">BI")


def encode(header: Mapping[str, Any], payload: Iterable[memoryview] = ()) -> list[Part]:
    """Return the parts of a message, in order.

    Args:
        header: Plain values.
        payload: Contiguous views, not copied: they must not change until the parts are sent.

    Raises:
        MalformedMessage: The header is larger than a receiver takes.
    """
    packed = msgpack.packb(dict(header))
    if len(packed) > MAX_HEADER_BYTES:
        raise MalformedMessage(
            f"A header has at most {MAX_HEADER_BYTES} bytes. Received: {len(packed)}"
        )
    parts: list[Part] = [packed]
    views = [view.cast("B") for view in payload if view.nbytes]
    left, bin_left = sum(map(len, views)), 0
    for view in views:
        while view:
            if not bin_left:  # as few `bin`s as can be, whatever the number of views
                bin_left = min(left, MAX_BIN_BYTES)
                parts.append(_BIN_32.pack(0xC6, bin_left))
            piece = view[:bin_left]
            parts.append(piece)
            view = view[len(piece) :]
            left, bin_left = left - len(piece), bin_left - len(piece)
    return parts


def nbytes(parts: Sequence[Part]) -> int:
    """Return the size of a message; the value for `Content-Length`."""
    return sum(len(part) for part in parts)


class Decoder:
    """Reads one message that arrives in pieces of any size.

    `feed` bytes until `header` is there; check it; say with `receive` where the payload belongs; go
    on feeding, or fill `target` directly and call `advance`; at the end of the body call `finish`.
    Without `receive`, no payload is taken. Not thread-safe. Never holds more than the header and
    the piece that came with it.
    """

    def __init__(self) -> None:
        self.header: dict[str, Any] | None = None
        self._unpacker = msgpack.Unpacker(max_buffer_size=MAX_HEADER_BYTES)
        self._early = bytearray()  # what came before `receive`
        self._is_receiving = False
        self._views: list[memoryview] = []  # what is left of them, none empty
        self._on_filled: Callable[[memoryview], None] | None = None
        self._whole: list[memoryview] = []  # the views as they were given, for `_on_filled`
        self._missing = 0  # payload bytes still to come
        self._bin_left = 0  # of them, in the present `bin`
        self._bins_left = 0  # how many more `bin`s may come
        self._marker = bytearray(5)
        self._marker_filled = 0

    @property
    def missing(self) -> int:
        """How many bytes of the payload are still to come; 0 before `receive`."""
        return self._missing

    @property
    def is_complete(self) -> bool:
        """Whether header and payload are there; nothing but empty `bin`s may still come."""
        return self._is_receiving and self._missing == 0

    def feed(self, piece: Part) -> None:
        """Take the next bytes of the body; they are copied to where they belong.

        Raises:
            MalformedMessage: They are not a message.
            PayloadSizeMismatch: They are more than `receive` asked for.
        """
        if self.header is None:
            self._early += piece
            self._read_header(piece)
        elif piece:
            if not self._is_receiving:
                self.receive([])
            self._scatter(memoryview(piece))

    def receive(
        self,
        views: Sequence[memoryview],
        on_filled: Callable[[memoryview], None] | None = None,
    ) -> None:
        """Say where the payload belongs: byte views that are filled one after the other.

        The caller owns them; they must stay valid until `is_complete` or until the decoder is
        dropped.

        Args:
            views: The same memory may be given several times, for a payload that is read piece by
                piece.
            on_filled: Called with each view when it is full, before the next is written to.

        Raises:
            MalformedMessage, PayloadSizeMismatch: As `feed`, for what came behind the header.
        """
        assert self.header is not None, "receive() comes after the header"
        self._views = [view.cast("B") for view in views if view.nbytes]
        self._on_filled = on_filled
        self._whole = self._views[:] if on_filled else []
        self._missing = sum(view.nbytes for view in self._views)
        self._bins_left = MAX_SMALL_BINS + self._missing // LEAST_BIN_BYTES
        self._is_receiving = True
        early, self._early = self._early, bytearray()
        self._scatter(memoryview(early))

    def target(self) -> memoryview:
        """Return where the next bytes belong; empty when the payload is there.

        Never longer than what is left of one `bin` in one view. Should there be more of the body
        behind the payload, it goes to `feed`.
        """
        return self._next() if self._missing else memoryview(b"")

    def advance(self, count: int) -> None:
        """Say that the first `count` bytes of `target()` have been filled.

        Raises:
            MalformedMessage, PayloadSizeMismatch: As `feed`.
        """
        if not self._bin_left:
            self._marker_filled += count
            self._read_marker()
            return
        self._bin_left -= count
        self._missing -= count
        self._views[0] = self._views[0][count:]
        if not self._views[0]:
            del self._views[0]  # the `bin` may go on in the next view
            if self._on_filled is not None:
                self._on_filled(self._whole.pop(0))

    def finish(self) -> None:
        """Check that nothing is missing, at the end of the body.

        Raises:
            MalformedMessage: The header is incomplete.
            PayloadSizeMismatch: The payload is too short, or too long where none was asked for.
        """
        if self.header is None:
            raise MalformedMessage(
                f"The body ended inside the header. Received: {len(self._early)} bytes"
            )
        if not self._is_receiving:
            self.receive([])
        if self._missing:
            raise PayloadSizeMismatch(
                f"The payload ended {self._missing} bytes early", missing=self._missing
            )
        if self._marker_filled:
            raise MalformedMessage("The body ended inside the length of a `bin`")

    def _scatter(self, piece: memoryview) -> None:
        while piece:
            target = self._next()
            count = min(len(target), len(piece))
            target[:count] = piece[:count]
            self.advance(count)
            piece = piece[count:]

    def _next(self) -> memoryview:
        if self._bin_left:
            return self._views[0][: self._bin_left]
        return memoryview(self._marker)[self._marker_filled : self._marker_wanted()]

    def _marker_wanted(self) -> int:
        return 1 + (_LENGTH_BYTES[self._marker[0]] if self._marker_filled else 0)

    def _read_marker(self) -> None:
        if self._marker_filled and self._marker[0] not in _LENGTH_BYTES:
            raise MalformedMessage(
                "Behind the header come msgpack `bin` objects alone. Received: a byte "
                f"0x{self._marker[0]:02x}"
            )
        if self._marker_filled < self._marker_wanted():
            return
        length = int.from_bytes(self._marker[1 : self._marker_filled], "big")
        self._marker_filled = 0
        if length > self._missing:
            raise PayloadSizeMismatch(
                f"The payload is longer than the layout says: a `bin` of {length} bytes where "
                f"{self._missing} are due",
                expected=self._missing,
                received=length,
            )
        if not self._bins_left:
            raise MalformedMessage(
                f"A payload has {MAX_SMALL_BINS} `bin`s and one more for each {LEAST_BIN_BYTES} "
                "bytes at most; send larger ones"
            )
        self._bins_left -= 1
        self._bin_left = length

    def _read_header(self, piece: Part) -> None:
        room = MAX_HEADER_BYTES - (len(self._early) - len(piece))
        try:
            self._unpacker.feed(piece[: max(room, 0)])
            self._unpacker.skip()  # builds nothing: a length may be announced and never come
        except msgpack.OutOfData:
            if len(self._early) >= MAX_HEADER_BYTES:
                raise MalformedMessage(
                    f"A header has at most {MAX_HEADER_BYTES} bytes. Received: more"
                ) from None
            return
        except (ValueError, msgpack.UnpackException) as error:
            raise _not_a_header(error) from None
        size = self._unpacker.tell()
        self.header = _unpacked_header(self._early[:size])
        del self._early[:size]


def _unpacked_header(packed: bytes | bytearray) -> dict[str, Any]:
    """Return the map that `packed`, a whole msgpack object, is; its memory is in proportion."""
    try:
        header = msgpack.unpackb(packed, max_bin_len=0, max_ext_len=0, ext_hook=_refuse_extension)
    except (ValueError, msgpack.UnpackException) as error:
        raise _not_a_header(error) from None
    if not isinstance(header, dict):
        raise MalformedMessage(
            f"A header is a map with string keys. Received: {type(header).__name__}"
        )
    values: list[Any] = [header]
    for _ in range(MAX_HEADER_DEPTH):
        maps = [value for value in values if isinstance(value, dict)]
        if not all(isinstance(key, str) for value in maps for key in value):
            raise MalformedMessage("A header is a map with string keys, and so are maps in it")
        lists = [value for value in values if isinstance(value, list)]
        values = [item for value in maps for item in value.values()]
        values += [item for value in lists for item in value]
        if not values:
            return header
    raise MalformedMessage(f"A header has at most {MAX_HEADER_DEPTH} levels. Received: more")


def _refuse_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code}")


def _not_a_header(error: Exception) -> MalformedMessage:
    return MalformedMessage(
        f"The header is not msgpack of maps, lists, strings and numbers ({type(error).__name__})"
    )
