"""Signs of life, beside whatever a worker does: from a thread, or from a task.

A worker that is silent for longer than its lease is taken for dead, and the others go on without
it. Computing a gradient may take longer than that. So while its session is open, a heartbeat goes
out three times in each lease. One that fails is no error: the next push tells what is the matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Awaitable, Callable

from stepwell_core.errors import StepwellError

from stepwell.retry import Flow
from stepwell.session import Session

BEATS_IN_LEASE = 3
LONGEST_PAUSE_S = 60.0
NOT_OPEN_S = 0.03
"""How soon to look again whether the session was opened: a third of the shortest lease there is."""
NO_LEASE_S = 0.5
"""The same for whether it got a lease; an older server gives none."""


class Heartbeat:
    """Beats from a thread of its own, that ends with the session's object at the latest.

    Args:
        session: Not kept alive.
        send: Drives a flow.
    """

    def __init__(self, session: Session, send: Callable[[Flow[None]], None]) -> None:
        self._session = weakref.ref(session)
        self._send = send
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun; cheap. Again in a forked process, where threads end."""
        if self._thread is None or not self._thread.is_alive():
            self._stopped = threading.Event()
            arguments = (self._session, self._send, self._stopped)
            self._thread = threading.Thread(
                target=_beat, args=arguments, name="stepwell-heartbeat", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Beat no more; does not wait."""
        self._stopped.set()
        self._thread = None


class AsyncHeartbeat:
    """Beats from a task; see `Heartbeat`."""

    def __init__(self, session: Session, send: Callable[[Flow[None]], Awaitable[None]]) -> None:
        self._session = weakref.ref(session)
        self._send = send
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(_beat_async(self._session, self._send))

    def stop(self) -> None:
        """Beat no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None


def _beat(
    reference: weakref.ref[Session],
    send: Callable[[Flow[None]], None],
    stopped: threading.Event,
) -> None:
    while not stopped.wait(_pause_s(reference)):
        session = reference()
        if session is None:
            return
        if session.is_open:
            with contextlib.suppress(StepwellError):  # the next push tells
                send(session.heartbeat())
        del session


async def _beat_async(
    reference: weakref.ref[Session], send: Callable[[Flow[None]], Awaitable[None]]
) -> None:
    while True:
        await asyncio.sleep(_pause_s(reference))
        session = reference()
        if session is None:
            return
        if session.is_open:
            with contextlib.suppress(StepwellError):  # the next push tells
                await send(session.heartbeat())
        del session


def _pause_s(reference: weakref.ref[Session]) -> float:
    session = reference()
    if session is None:
        return 0.0
    if not session.is_open:
        return NOT_OPEN_S
    if session.lease_s is None:
        return NO_LEASE_S
    return min(session.lease_s / BEATS_IN_LEASE, LONGEST_PAUSE_S)
