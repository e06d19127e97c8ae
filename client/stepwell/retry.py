"""Flows: what a client does, step by step, without doing it.

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

from stepwell_core.errors import Unavailable

from stepwell.calls import Answer, Call
from stepwell.errors import TransportError, UnexpectedAnswer

T = TypeVar("T")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Sleep:
    """Wait before the next step."""

    seconds: float


Flow = Generator[Call | Sleep, Answer, T]


def once(call: Call) -> Flow[Answer]:
    """Make a call, without a second try."""
    return (yield call)


def repeatedly(call: Call, retry_s: float) -> Flow[Answer]:
    """Make a call until it is answered, with growing pauses.

    Repeats after a connection that failed, an answer that did not come, and 503. A call that may do
    harm twice is repeated only if it cannot have reached the server.

    Args:
        call: What to send.
        retry_s: When to give up, in seconds from now; the last error is raised then.
    """
    deadline = time.monotonic() + retry_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return (yield call)
        except (TransportError, Unavailable) as error:
            was_sent = isinstance(error, TransportError) and error.was_sent
            if isinstance(error, UnexpectedAnswer) or (was_sent and not call.can_repeat):
                raise
            if time.monotonic() + pause_s > deadline:
                raise
        yield Sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
