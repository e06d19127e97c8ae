"""The history of a model: asked for as a range, or listened to as it happens; no I/O."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from stepwell_core.errors import InvalidArgument, StepwellError, shown

from stepwell.calls import Answer, Call, model_path, required
from stepwell.errors import TransportError, UnexpectedAnswer
from stepwell.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, Patience, may_repeat

MOST_MESSAGE_BYTES = 1 << 20
"""An event of a Stepwell server is far smaller; something else may go on for ever."""

log = logging.getLogger("stepwell")


@dataclass(frozen=True)
class HistoryEvent:
    """Something that happened to a model.

    Attributes:
        number: Larger than that of every earlier event of the model; give it to `events(after=)`.
        time: Unix seconds, of the server.
        kind: "step", "drop", "join", "leave", "checkpoint", ...; see docs/protocol.md.
        version: Of the model, after it.
        fields: The rest, by name.
    """

    number: int
    time: float
    kind: str
    version: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """Numbers over versions: "gradient_norm", "learning_rate", "metrics.loss", ...

    Attributes:
        version: int64.
        time: Unix seconds, float64.
        value: float64.
    """

    version: npt.NDArray[np.int64]
    time: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ModelHistory:
    """A range of a model's history.

    Attributes:
        series: By name; of long ones the smallest and largest values of each part.
        events: Oldest first.
        left_out: How many more events there are in the range.
        lost: How many entries the server could not keep since it started.
    """

    series: Mapping[str, Series]
    events: Sequence[HistoryEvent]
    left_out: int
    lost: int


def ask(
    model: str,
    from_version: int | None = None,
    to_version: int | None = None,
    since: float | None = None,
    kinds: str | Iterable[str] | None = None,
    series: bool = True,
    points: int | None = None,
) -> Call:
    """Ask for a range of a model's history; None is the server's default."""
    given = {
        "from_version": from_version,
        "to_version": to_version,
        "since": since,
        "kinds": _names(kinds),
        "series": None if series else "false",
        "points": points,
    }
    query = {name: value for name, value in given.items() if value is not None}
    return Call("GET", model_path(model, "history"), query)


def history_of(answer: Answer) -> ModelHistory:
    """Return the history in an answer.

    Raises:
        UnexpectedAnswer: There is none.
    """
    try:
        series = {
            name: Series(
                np.array(columns["version"], np.int64),
                np.array(columns["time"], np.float64),
                np.array(columns["value"], np.float64),
            )
            for name, columns in answer["series"].items()
        }
        columns = answer["events"]
        rows = zip(*(columns[name] for name in (*_HEAD, "fields")), strict=True)
        events = [HistoryEvent(*row) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnexpectedAnswer(
            f"The answer is no history ({type(error).__name__}); does the server speak this "
            "protocol?"
        ) from None
    return ModelHistory(series, events, int(answer["left_out"]), int(answer["lost"]))


class Listening:
    """Listens to one model: says what to call, reads what comes, goes on after a broken connection.

    Args:
        model: Its name.
        after: The number of the last event that is known; None begins with what comes.
        kinds: Which are wanted; None is all.
        patience: How long a server that does not answer is waited for.

    Raises:
        InvalidArgument: `after` is no number of an event.
    """

    def __init__(
        self,
        model: str,
        after: int | None,
        kinds: str | Iterable[str] | None,
        patience: Patience,
    ) -> None:
        if after is not None and (type(after) is not int or after < 0):
            raise InvalidArgument(
                f"`after` is the number of an event, or 0. Received: {shown(after)}"
            )
        self._model = model
        self._after = after
        self._kinds = _names(kinds)
        self._patience = patience
        self._rest = b""
        self._heard_at = time.monotonic()
        self._pause_s = FIRST_PAUSE_S

    def call(self) -> Call:
        """Return the call that goes on behind what was heard so far."""
        self._rest = b""
        query: dict[str, Any] = {} if self._kinds is None else {"kinds": self._kinds}
        if self._after is not None:
            query["after"] = self._after
        return Call("GET", model_path(self._model, "events"), query)

    def feed(self, piece: bytes) -> list[HistoryEvent]:
        """Take the next bytes of the stream; returns the events that are complete.

        Raises:
            UnexpectedAnswer: They are no events.
        """
        self._patience.was_reached = True
        self._heard_at, self._pause_s = time.monotonic(), FIRST_PAUSE_S
        *messages, self._rest = (self._rest + piece).split(b"\n\n")
        if len(self._rest) > MOST_MESSAGE_BYTES:
            raise UnexpectedAnswer("An event of a Stepwell server is small. Received: no end of it")
        events = (self._read(message.decode("utf-8", "replace")) for message in messages)
        return [event for event in events if event is not None]

    def pause_s(self, error: StepwellError | None) -> float:
        """Return how long to wait before the next call, after a stream that ended.

        Args:
            error: Of what; None if the server ended it.

        Raises:
            StepwellError: The error, if it is no use to try again.
        """
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if error is None:
            return pause_s
        self._patience.was_reached |= not isinstance(error, TransportError)
        silent_s = time.monotonic() - self._heard_at
        is_over = silent_s + pause_s > self._patience.limit_s(error)
        if is_over or not may_repeat(self.call(), error):
            raise error
        return pause_s

    def _read(self, message: str) -> HistoryEvent | None:
        fields: dict[str, str] = {}
        for line in message.splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        try:
            if "id" in fields:
                self._after = int(fields["id"])
            if "data" not in fields:
                return None
            data = json.loads(fields["data"])
        except (ValueError, RecursionError) as error:
            raise UnexpectedAnswer(
                f"An event of a Stepwell server is JSON ({type(error).__name__})"
            ) from None
        if "id" not in fields:
            log.warning("Events %s to %s of model %r were missed", *_span(data), self._model)
            return None
        number, at, kind, version = (required(data, name) for name in _HEAD)
        rest = {name: value for name, value in data.items() if name not in _HEAD}
        return HistoryEvent(number, at, kind, version, rest)


_HEAD = ("number", "time", "kind", "version")


def _span(data: Any) -> tuple[Any, Any]:
    return required(data, "first"), required(data, "last")


def _names(kinds: str | Iterable[str] | None) -> list[str] | None:
    """Return kinds as a list; a single one is a name."""
    if kinds is None:
        return None
    return [kinds] if isinstance(kinds, str) else list(kinds)
