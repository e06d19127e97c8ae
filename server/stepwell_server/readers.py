"""Who waits to read a model: until a step in place is over, or until a version is there.

Nobody polls: the lane has `wake` called behind every change that somebody may wait for. Waiting
holds no version, so it costs the writer nothing; a hundred who wait for a version are one call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from stepwell_core.engine import Engine
from stepwell_core.errors import StaleIncarnation, StepwellError
from stepwell_core.store import Version


@dataclass(frozen=True, eq=False, slots=True)
class _Wait:
    """One reader who waits; `future` is set when `is_over` became true."""

    is_over: Callable[[], bool]
    future: asyncio.Future[None]


class Readers:
    """The readers of one model. All methods are called on the event loop.

    Args:
        engine: Of the model; only its store and its counters are read.

    Attributes:
        incarnation: The model's, as readers are told it. Set by the lane, after the version with
            which it begins is there.
    """

    def __init__(self, engine: Engine) -> None:
        self.incarnation = engine.incarnation
        self._engine = engine
        self._waits: set[_Wait] = set()
        self._end: StepwellError | None = None

    @property
    def is_any_waiting(self) -> bool:
        """Whether somebody waits; may be asked from any thread."""
        return bool(self._waits)

    async def hold(self) -> tuple[str, Version]:
        """Hold the current version; waits for a step that is under way in place.

        Returns:
            The incarnation, and the version, which the caller gives to `Store.release`. While
            history is being cut it may be the version after the cut with the incarnation before it:
            whoever pushes a gradient of it is refused. It is never the other way round.

        Raises:
            VersionsExhausted: Slow readers hold every buffer that can be spared.
        """
        while (held := self._try_hold()) is None:
            await self._until(lambda: not self._engine.store.is_in_place)
        return held

    @property
    def present(self) -> tuple[str, int]:
        """The incarnation and the version that `hold` would say now; it may find a later one."""
        incarnation = self.incarnation
        return incarnation, self._engine.store.number

    def _try_hold(self) -> tuple[str, Version] | None:
        incarnation = self.incarnation
        version = self._engine.store.hold()
        return None if version is None else (incarnation, version)

    def has(self, version: int) -> bool:
        """Return whether the parameters are at `version` or a later one."""
        return self._engine.store.number >= version

    async def wait_for(self, version: int, wait_s: float, incarnation: str | None = None) -> None:
        """Return when the parameters are at `version` or a later one, or when the time is over.

        Cancel it and nobody waits any more.

        Args:
            version: Of the parameters.
            wait_s: For how long at most, in seconds.
            incarnation: Of the history that `version` belongs to, if it is known.

        Raises:
            StaleIncarnation: It is another history, or became one while this waited.
            StepwellError: What `end` was told.
        """

        def is_over() -> bool:
            is_cut = incarnation not in (None, self.incarnation)
            return is_cut or self.has(version) or self._end is not None

        if wait_s and not is_over():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._until(is_over)
        if wait_s and self._end is not None and not self.has(version):
            raise self._end
        self.check(incarnation)

    def check(self, incarnation: str | None) -> None:
        """Refuse a reader of another history; None is of any.

        Raises:
            StaleIncarnation: It is not the present one.
        """
        if incarnation in (None, self.incarnation):
            return
        counters = self._engine.counters
        raise StaleIncarnation(
            "The model's history was cut since the version that was asked for by its number: it "
            "was restored, overwritten or created anew. Pull without `min_version`, and go on from "
            "what comes",
            incarnation=self.incarnation,
            version=counters.version,
            parameters_version=counters.parameters_version,
        )

    async def _until(self, is_over: Callable[[], bool]) -> None:
        wait = _Wait(is_over, asyncio.get_running_loop().create_future())
        self._waits.add(wait)
        try:
            # Between the look before this and now it may have come to be, and with it the call.
            if not is_over():
                await wait.future
        finally:
            self._waits.discard(wait)

    def wake(self) -> None:
        """Let those go on whose wait is over; O(those who wait)."""
        for wait in self._waits:
            if not wait.future.done() and wait.is_over():
                wait.future.set_result(None)

    def end(self, error: StepwellError) -> None:
        """Refuse those who wait for a version, now and from now on: the model goes away."""
        self._end = error
        self.wake()
