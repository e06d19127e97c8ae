"""Reads one HTTP/1.1 response from a connection: its head, then its body without a copy.

A lean reader of RFC 9112, sections 2 to 7: a head of at most 64 KiB; interim responses (1xx) are
skipped; the body ends after `Content-Length`, with the last chunk, or with the connection. What is
ambiguous is refused. `http.client` would do as well, at some 40 us more a response.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

BUFFER_BYTES = 1 << 16
"""Room for a head, a small body, and the first bytes of a large one."""

MAX_INTERIM = 100
MAX_TRAILERS = 100
MAX_DIGITS = 18
"""Of a length: more bytes than there are."""

_HEXADECIMAL = b"0123456789abcdefABCDEF"
_NEVER = frozenset("\r\n\0")

ReceiveInto = Callable[[memoryview], int]
"""Waits for bytes, writes them to the start of a view and returns how many; 0 at the end."""


class NoHttp(ConnectionError):
    """What was received is no HTTP response."""


class CutOff(ConnectionError):
    """The connection ended before the response did."""


class Incoming:
    """The bytes that come in over one connection, with a buffer in front.

    Args:
        receive_into: Where they come from.
    """

    def __init__(self, receive_into: ReceiveInto) -> None:
        self._receive_into = receive_into
        self._bytes = bytearray(BUFFER_BYTES)
        self._room = memoryview(self._bytes)
        self._start = self._stop = 0  # what is in the buffer and was not taken yet

    @property
    def is_empty(self) -> bool:
        """Whether everything that was received has been taken."""
        return self._start == self._stop

    def until(self, end: bytes, begin: bytes = b"") -> bytes:
        """Return the bytes before `end`, and take both.

        Raises:
            CutOff: The connection ended.
            NoHttp: They begin otherwise than with `begin`, or are more than the buffer holds.
        """
        while (found := self._bytes.find(end, self._start, self._stop)) < 0:
            begun = self._bytes[self._start : min(self._stop, self._start + len(begin))]
            if not begin.startswith(begun):
                raise NoHttp("no status line")  # at once: nobody may ever send the `end`
            self._fill()
        line = bytes(self._room[self._start : found])
        self._start = found + len(end)
        return line

    def take(self, limit: int) -> memoryview:
        """Return the next 1 to `limit` bytes, valid until the next call; empty at the end."""
        if self.is_empty:
            self._start = self._stop = 0
            self._stop = self._receive_into(self._room)
        start = self._start
        self._start = min(self._stop, start + limit)
        return self._room[start : self._start]

    def read_into(self, view: memoryview) -> int:
        """Fill the start of `view` and return how many bytes; 0 at the end."""
        if self.is_empty and len(view) >= BUFFER_BYTES:
            return self._receive_into(view)
        piece = self.take(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def _fill(self) -> None:
        """Receive more behind what is in the buffer."""
        if self._start:
            kept = self._bytes[self._start : self._stop]
            self._room[: len(kept)] = kept
            self._start, self._stop = 0, len(kept)
        if self._stop == BUFFER_BYTES:
            raise NoHttp("a head or line that does not end")
        count = self._receive_into(self._room[self._stop :])
        if not count:
            raise CutOff("the connection ended in a head" if self._stop else "no answer")
        self._stop += count


class Response:
    """One response. Read its body to the end before the next request is sent.

    Args:
        incoming: Where it begins.
        method: Of the request.
        is_last: Whether the connection can take no other request, whatever the response says.

    Attributes:
        status: 200 to 999.
        headers: By name in lower case; those that came twice are joined with commas.

    Raises:
        NoHttp: It is no response that can be read.
        CutOff: The connection ended.
    """

    def __init__(self, incoming: Incoming, method: str, *, is_last: bool = False) -> None:
        self._incoming = incoming
        version, self.status, self.headers = _read_final_head(incoming)
        options = self.headers.get("connection", "").lower()
        self._keeps_alive = version == b"HTTP/1.1" and "close" not in options and not is_last
        self._is_chunked = False
        self._has_begun = False
        self._left = 0  # bytes of the body, or of its present chunk
        if method != "HEAD" and self.status not in (204, 304):
            self._frame()

    @property
    def is_reusable(self) -> bool:
        """Whether the body was read to its end, and the connection can take the next request."""
        is_over = not self._left and not self._is_chunked
        return is_over and self._keeps_alive and self._incoming.is_empty

    def take(self) -> memoryview:
        """Return the next bytes of the body, valid until the next call; empty at the end.

        Raises:
            CutOff, NoHttp: The connection ended before the body, or its framing is broken.
        """
        limit = self._limit()
        if not limit:
            return memoryview(b"")
        piece = self._incoming.take(limit)
        self._note(len(piece))
        return piece

    def read_into(self, view: memoryview) -> int:
        """Fill `view` with the body and return how many bytes; fewer than it has at the end.

        Raises:
            CutOff, NoHttp: As `take`.
        """
        filled = 0
        while filled < len(view) and (limit := self._limit()):
            count = self._incoming.read_into(view[filled : filled + limit])
            self._note(count)
            filled += count
        return filled

    def _frame(self) -> None:
        """Find out where the body ends."""
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise NoHttp("ambiguous framing")
            self._is_chunked = True
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) <= MAX_DIGITS):
                raise NoHttp("no length")
            self._left = int(length)
        else:
            self._left, self._keeps_alive = sys.maxsize, False  # until the connection ends

    def _limit(self) -> int:
        """Return how many bytes may be read in one go; 0 at the end of the body."""
        if not self._left and self._is_chunked:
            self._next_chunk()
        return self._left

    def _note(self, count: int) -> None:
        if count:
            self._left -= count
        elif self._is_chunked or "content-length" in self.headers:
            raise CutOff("the connection ended in a body")
        else:
            self._left = 0

    def _next_chunk(self) -> None:
        if self._has_begun and self._incoming.until(b"\r\n"):
            raise NoHttp("a chunk that does not end")
        self._has_begun = True
        size = self._incoming.until(b"\r\n").partition(b";")[0].strip(b" \t")
        if not size or size.strip(_HEXADECIMAL) or len(size) > MAX_DIGITS:
            raise NoHttp("no size of a chunk")
        self._left = int(size, 16)
        if not self._left:
            self._skip_trailers()
            self._is_chunked = False

    def _skip_trailers(self) -> None:
        for _ in range(MAX_TRAILERS):
            if not self._incoming.until(b"\r\n"):
                return
        raise NoHttp("trailers that do not end")


def _read_final_head(incoming: Incoming) -> tuple[bytes, int, Mapping[str, str]]:
    """Return version, status and headers of the response behind interim ones."""
    for _ in range(MAX_INTERIM):
        version, status, headers = _read_head(incoming)
        if status >= 200:
            return version, status, headers
        if status == 101:
            raise NoHttp("another protocol")
    raise NoHttp("interim responses that do not end")


def _read_head(incoming: Incoming) -> tuple[bytes, int, Mapping[str, str]]:
    """Return version, status and headers."""
    first, *lines = incoming.until(b"\r\n\r\n", b"HTTP/").split(b"\r\n")
    version, _, rest = first.partition(b" ")
    status = rest[:3]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not (status.isdigit() and len(status) == 3):
        raise NoHttp("no status line")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not _NEVER.isdisjoint(value):
            raise NoHttp("a control character in a header line")
        if not colon or not name or name != name.strip():
            raise NoHttp("no header line")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return version, int(status), headers
