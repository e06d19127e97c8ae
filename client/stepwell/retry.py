"""Flows: what a client does, step by step, without doing it; and how often it tries.

A flow is a generator that yields what it wants (`Call` or `Sleep`), is sent the answer, and returns
its result. The blocking and the asyncio client drive the same flows; so retries and sessions are
written once.
"""

from __future__ import annotations

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
    """

    timeout: Timeout
    was_reached: bool = False

    def limit_s(self, error: StepwellError) -> float:
        """Return how long to try again after `error`, in seconds from the first try.

        A server that never answered is most likely not there, so it is given up soon.
        """
        is_absent = isinstance(error, ConnectionFailed) and not self.was_reached
        timeout = self.timeout
        return min(timeout.connect_s, timeout.retry_s) if is_absent else timeout.retry_s


@dataclass(frozen=True)
class Sleep:
    """Wait before the next step."""

    seconds: float


Flow = Generator[Call | Sleep, Answer, T]


def repeatedly(call: Call, patience: Patience) -> Flow[Answer]:
    """Make a call until it is answered, with growing pauses.

    Repeats after a connection that failed, an answer that did not come, and 503. A call that may do
    harm twice is repeated only if it cannot have reached the server.

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
        else:
            patience.was_reached = True
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
