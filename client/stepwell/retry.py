"""Flows: what a client does, step by step, without doing it; and how often it tries.

A flow is a generator that yields what it wants (`Call` or `Sleep`), is sent the answer, and returns
its result. The blocking and the asyncio client drive the same flows; so retries and sessions are
written once.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from stepwell_core.errors import InvalidArgument, StepwellError, Unavailable, shown

from stepwell.calls import Answer, Call
from stepwell.errors import CertificateRefused, ConnectionFailed, TransportError, UnexpectedAnswer

T = TypeVar("T")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
QUIET_S = 2.0
"""How long a call is repeated before the log says so; a hiccup is nobody's business."""

log = logging.getLogger("stepwell")


@dataclass(frozen=True)
class Timeout:
    """How long a client waits, in seconds.

    Attributes:
        connect_s: For a connection.
        read_s: For the next bytes of an answer; the server answers a waiting push after 20 s.
        retry_s: For an answer in all, repetitions included. A push that waits for other workers was
            answered, and waits as long as they take. A server that this client never reached
            is given up after `connect_s`.

    Raises:
        InvalidArgument: A time is not a number > 0.
    """

    connect_s: float = 5.0
    read_s: float = 30.0
    retry_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse times that cannot be."""
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise InvalidArgument(f"`{name}` is in seconds, > 0. Received: {shown(value)}")


@dataclass
class Patience:
    """How long one client repeats its calls.

    Attributes:
        timeout: What its user said.
        was_reached: Whether the server ever answered this client.
        is_told: Whether the log's last word is that the server does not answer.
    """

    timeout: Timeout
    was_reached: bool = False
    is_told: bool = False

    def limit_s(self, error: StepwellError) -> float:
        """Return how long to try again after `error`, in seconds from the first try.

        A server that never answered is most likely not there, so it is given up soon.
        """
        is_absent = isinstance(error, ConnectionFailed) and not self.was_reached
        timeout = self.timeout
        return min(timeout.connect_s, timeout.retry_s) if is_absent else timeout.retry_s

    def note_failure(self, error: StepwellError, spent_s: float) -> None:
        """Say in the log, once, why nothing happens: a program that trains would seem to hang.

        What is given up soon is not worth a line; its error comes anyway.
        """
        limit_s = self.limit_s(error)
        if spent_s >= QUIET_S and limit_s >= 5 * QUIET_S and not self.is_told:
            self.is_told = True
            log.warning("%s. Waiting for it, up to %g s", error.message, limit_s)

    def note_answer(self, spent_s: float) -> None:
        """Take an answer; say so if the log last said that none comes."""
        self.was_reached = True
        if self.is_told:
            self.is_told = False
            log.warning("The server answers again, after %.0f s", spent_s)


@dataclass(frozen=True)
class Sleep:
    """Wait before the next step."""

    seconds: float


Flow = Generator[Call | Sleep, Answer, T]


def repeatedly(call: Call, patience: Patience) -> Flow[Answer]:
    """Make a call until it is answered, with growing pauses.

    Repeats after a connection that failed, an answer that did not come, and 503. A call that may do
    harm twice is repeated only if it cannot have reached the server. A long wait is in the log.

    Args:
        call: What to send.
        patience: When to give up; the last error is raised then.
    """
    started = time.monotonic()
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            answer = yield call
        except StepwellError as error:
            patience.was_reached |= not isinstance(error, TransportError)
            spent_s = time.monotonic() - started
            if not may_repeat(call, error) or spent_s + pause_s > patience.limit_s(error):
                raise
            patience.note_failure(error, spent_s)
        else:
            patience.note_answer(time.monotonic() - started)
            return answer
        yield Sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def may_repeat(call: Call, error: StepwellError) -> bool:
    """Return whether a call may be made again after an error."""
    if call.destination is not None and not call.destination.can_begin:
        return False  # a part of the answer was delivered, and the next one may be another
    if isinstance(error, Unavailable):
        return True
    if isinstance(error, UnexpectedAnswer | CertificateRefused):
        return False  # the next answer would be no other
    return isinstance(error, TransportError) and (call.can_repeat or not error.was_sent)
