"""A worker whose pushes are dropped one after the other is told so, once."""

from __future__ import annotations

import logging

from stepwell.results import PushResult

MOST_IN_A_ROW = 3
"""Dropped pushes after which something is wrong: a straggler loses one now and then."""

log = logging.getLogger("stepwell")


class Drops:
    """The pushes of one worker that were dropped in a row.

    Args:
        model: Name of the model.
        worker: Name of the worker.
    """

    def __init__(self, model: str, worker: str) -> None:
        self._model = model
        self._worker = worker
        self._in_a_row = 0

    def note(self, result: PushResult, computed_at: int | None) -> None:
        """Note what became of a push, and warn if it is one too many.

        Args:
            result: Of the push.
            computed_at: The version of the parameters that its gradient was computed at.
        """
        if result.outcome not in ("dropped_stale", "dropped_late"):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row == MOST_IN_A_ROW:
            log.warning(
                "The last %d pushes of worker %r had no effect (%s): the gradient was computed at "
                "version %s of model %r, which is at %d. Pull before each gradient; if this worker "
                "does, it is too slow for the model's mode",
                self._in_a_row,
                self._worker,
                result.outcome,
                computed_at,
                self._model,
                result.version,
            )
