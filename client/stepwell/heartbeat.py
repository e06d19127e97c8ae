"""Signs of life, beside whatever a worker does: from a thread, or from a task.

A worker that is silent for longer than its lease is taken for dead, and the others go on without
it. Computing a gradient may take longer than that. So while its session is open, a heartbeat goes
out three times in each lease. One that fails is no error: the next push tells what is the matter.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable

from stepwell_core.errors import StepwellError

from stepwell.retry import Flow
from stepwell.session import Session

BEATS_IN_LEASE = 3
LONGEST_PAUSE_S = 60.0


class Heartbeat:
    """Beats from a thread of its own, that ends with the session's object at the latest.

    Args:
        session: Not kept alive.
        send: Drives a flow.
    """

    def __init__(self, session: Session, send: Callable[[Flow[None]], None]) -> None:
        self._session = weakref.ref(session)
        self._send = send
        self._signal = Signal()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun; cheap. Again in a forked process, where threads end."""
        if self._thread is None or not self._thread.is_alive():
            self._signal = Signal()  # in a forked process the old one's lock may be held for ever
            session = self._session()
            if session is not None:
                session.on_open = self._signal.woken.set
            arguments = (self._session, self._send, self._signal)
            self._thread = threading.Thread(
                target=_beat, args=arguments, name="stepwell-heartbeat", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Beat no more; does not wait."""
        self._signal.is_over = True
        self._signal.woken.set()
        self._thread = None


class Signal:
    """What wakes a heartbeat's thread, and whether that is to end."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.is_over = False


class AsyncHeartbeat:
    """Beats from a task; see `Heartbeat`."""

    def __init__(self, session: Session, send: Callable[[Flow[None]], Awaitable[None]]) -> None:
        self._session = weakref.ref(session)
        self._send = send
        self._woken = asyncio.Event()
        session.on_open = self._woken.set
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._task is None or self._task.done():
            beating = _beat_async(self._session, self._send, self._woken)
            self._task = asyncio.create_task(beating)

    def stop(self) -> None:
        """Beat no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None


def _beat(
    reference: weakref.ref[Session], send: Callable[[Flow[None]], None], signal: Signal
) -> None:
    while reference() is not None:
        was_woken = signal.woken.wait(_pause_s(reference))
        signal.woken.clear()
        if signal.is_over:
            return
        session = reference()
        if session is not None and session.is_open and not was_woken:
            try:
                send(session.heartbeat())
            except RuntimeError:
                return  # the client was closed, and nothing can be sent any more
            except StepwellError:
                pass  # the next push tells
        del session


async def _beat_async(
    reference: weakref.ref[Session],
    send: Callable[[Flow[None]], Awaitable[None]],
    woken: asyncio.Event,
) -> None:
    while reference() is not None:
        was_woken = True
        try:
            await asyncio.wait_for(woken.wait(), _pause_s(reference))
        except TimeoutError:
            was_woken = False
        woken.clear()
        session = reference()
        if session is not None and session.is_open and not was_woken:
            try:
                await send(session.heartbeat())
            except RuntimeError:
                return  # the client was closed, and nothing can be sent any more
            except StepwellError:
                pass  # the next push tells
        del session


def _pause_s(reference: weakref.ref[Session]) -> float:
    """Return how long to wait for the next beat, or until a session is opened."""
    session = reference()
    if session is None:
        return 0.0
    if not session.is_open or session.lease_s is None:
        return LONGEST_PAUSE_S
    return min(session.lease_s / BEATS_IN_LEASE, LONGEST_PAUSE_S)
