"""Reads the answer to a call, whatever it comes over: a message to its destination, else memory."""

from __future__ import annotations

import json
from typing import Any, Protocol

from stepwell_core import wire
from stepwell_core.errors import LayoutMismatch, StepwellError

from stepwell.calls import Answer, Call, expected_payload
from stepwell.destinations import Destination, NewArrays
from stepwell.errors import ConnectionFailed, TransportError, UnexpectedAnswer, from_problem

MAX_JSON_BYTES = 16 << 20
"""What a Stepwell server says in JSON is far smaller; something else may go on for ever."""

MAX_EARLY_BYTES = 1 << 16
"""How much of a body is looked at before its header is there; smaller than any destination's
window."""

GATEWAY_FAILURES = frozenset({502, 503, 504})
"""What a proxy says while the server behind it restarts."""


class Headers(Protocol):
    """The headers of a response, found by names in lower case."""

    def get(self, name: str, default: str, /) -> str:
        """Return a value, or `default` if there is no such header."""


class AnswerReader:
    """Reads one response. Fill `target` and call `advance`, or `feed` what comes; then `finish`.

    Args:
        call: What was asked.
        status: Of the response.
        headers: Of the response.
    """

    def __init__(self, call: Call, status: int, headers: Headers) -> None:
        self._call = call
        self._status = status
        self._media_type = headers.get("content-type", "").partition(";")[0].strip()
        self._etag = headers.get("etag", "") or None
        is_message = self._media_type == wire.MEDIA_TYPE and status < 300
        self._decoder = wire.Decoder() if is_message else None
        self._destination: Destination | None = None
        self._body = bytearray()

    def target(self) -> memoryview:
        """Return where the next bytes belong; empty if they are to be given to `feed`."""
        if self._decoder is None or self._destination is None:
            return _NOWHERE
        return self._decoder.target()

    def advance(self, count: int) -> None:
        """Say that the first `count` bytes of `target()` have been filled."""
        assert self._decoder is not None, "only a message has a target"
        assert self._destination is not None, "only a message has a target"
        try:
            self._decoder.advance(count)
        except StepwellError as error:
            raise _unreadable(error) from error
        self._destination.note(self._decoder.missing)

    def feed(self, piece: wire.Part) -> None:
        """Take the next bytes of the body.

        Raises:
            UnexpectedAnswer: They are not what a Stepwell server says.
            LayoutMismatch: They are of another model.
        """
        if self._decoder is None:
            self._body += piece
            if len(self._body) > MAX_JSON_BYTES:
                raise self._unexpected()
            return
        left = memoryview(piece)
        while left:
            left = left[self._take(left, self._decoder) :]

    def _take(self, piece: memoryview, decoder: wire.Decoder) -> int:
        """Take the beginning of a piece and return how much that was."""
        target = self.target()
        if target:
            count = min(len(target), len(piece))
            target[:count] = piece[:count]
            self.advance(count)
            return count
        early = piece[:MAX_EARLY_BYTES]
        try:
            decoder.feed(early)
            if self._destination is None and decoder.header is not None:
                self._begin(decoder, decoder.header)
        except LayoutMismatch:
            raise
        except StepwellError as error:
            raise _unreadable(error) from error
        if self._destination is not None:
            self._destination.note(decoder.missing)
        return len(early)

    def _begin(self, decoder: wire.Decoder, header: dict[str, Any]) -> None:
        """Say where the payload behind a header belongs, if there is one."""
        selection = expected_payload(self._call, header)
        if selection is None:
            decoder.receive([])
            return
        destination = self._call.destination or NewArrays(self._call.dtype)
        decoder.receive(destination.begin(selection))
        self._destination = destination

    def finish(self) -> Answer:
        """Return the answer, at the end of the body.

        Raises:
            StepwellError: What the server says, if it refuses.
            TransportError: The body is not a whole answer.
        """
        if self._status == 304 and self._call.etag is not None:
            return Answer({}, is_current=True)
        if self._decoder is None:
            return Answer({} if self._status == 204 else self._fields())
        try:
            self._decoder.finish()
        except StepwellError as error:
            raise _unreadable(error) from error
        assert self._decoder.header is not None, "a complete message has a header"
        tensors = None if self._destination is None else self._destination.tensors()
        return Answer(self._decoder.header, tensors, self._etag)

    def _fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self._body)
        except (ValueError, RecursionError):
            fields = None
        is_object = isinstance(fields, dict)
        if is_object and self._status < 300:
            return dict(fields)
        if is_object and self._status >= 400 and "code" in fields:
            raise from_problem(fields, self._status)
        raise self._unexpected()

    def _unexpected(self) -> TransportError:
        if self._status in GATEWAY_FAILURES:
            return ConnectionFailed(
                f"Something in between answered {self._status} for the server; is it running?",
                was_sent=True,
            )
        return UnexpectedAnswer(
            f"Expected a Stepwell server. Received: status {self._status}, type "
            f"{self._media_type[:40]!r}; is the URL right, and is a proxy in the way?"
        )


def is_stream(status: int, headers: Headers) -> bool:
    """Return whether a response is a stream of events; what else it says is for `AnswerReader`."""
    media_type = headers.get("content-type", "").partition(";")[0].strip()
    return status == 200 and media_type == "text/event-stream"


def no_stream() -> UnexpectedAnswer:
    """Return what to raise for an answer that is whole where a stream was asked for."""
    return UnexpectedAnswer(
        "Expected a stream of events. Received: another answer; is the server older than this "
        "client?"
    )


_NOWHERE = memoryview(b"")


def _unreadable(error: StepwellError) -> StepwellError:
    """Return what to raise for an answer that breaks the protocol."""
    if isinstance(error, TransportError):
        return error
    return UnexpectedAnswer(f"The answer cannot be read. {error.message}")
