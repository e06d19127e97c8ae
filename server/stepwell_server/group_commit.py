"""Changes of one model that are written down and wait for one sync: group commit.

All of it is the lane's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import structlog
from stepwell_core.engine import Engine
from stepwell_core.errors import InternalError, ModelReadOnly, StepwellError
from stepwell_core.push import Staged

from stepwell_server.recorder import Recorder
from stepwell_server.waiters import Key

log = structlog.get_logger("stepwell")

MOST_IN_GROUP = 64
"""Changes that one fsync is for; more would make the first of them wait for the others."""


class GroupCommit:
    """The changes since the last sync.

    Args:
        engine: Of the model; has them staged.
        recorder: Has them written down.
        make: Makes a change and answers the pushes in it.
        refuse: Tells all who wait for a push that does so no more.
    """

    def __init__(
        self,
        engine: Engine,
        recorder: Recorder,
        make: Callable[[Staged], None],
        refuse: Callable[[StepwellError], None],
    ) -> None:
        self._engine = engine
        self._recorder = recorder
        self._make = make
        self._refuse = refuse
        self._changes: list[tuple[Staged, contextlib.ExitStack]] = []

    @property
    def is_full(self) -> bool:
        """Whether it is to be settled now."""
        return len(self._changes) >= MOST_IN_GROUP

    @property
    def keys(self) -> set[Key]:
        """The pushes in it."""
        return {push.key for staged, _ in self._changes for push, _ in staged.results}

    def add(self, staged: Staged, done: contextlib.ExitStack) -> None:
        """Take in the last change that was staged, and what is given back when it is made."""
        self._changes.append((staged, done))

    def settle(self) -> bool:
        """Sync, make and answer; returns whether there was anything. Does not raise."""
        changes, self._changes = self._changes, []
        with contextlib.ExitStack() as given_back:
            for _, done in changes:
                given_back.push(done)
            if changes:
                self._settle([staged for staged, _ in changes])
        return bool(changes)

    def _settle(self, changes: list[Staged]) -> None:
        try:
            self._recorder.sync()
        except BaseException as error:  # whatever it is, those who wait are answered
            for staged in reversed(changes):
                self._engine.withdraw(staged)
            if not isinstance(error, StepwellError):
                error = ModelReadOnly(f"The journal could not be synced ({type(error).__name__})")
            self._refuse(error)
            return
        try:
            for staged in changes:
                self._make(staged)
        except BaseException:  # no memory: the lane goes on, and tells everyone so
            log.exception("change_not_made", model=self._engine.definition.name)
            self._refuse(InternalError("The change was not made"))
