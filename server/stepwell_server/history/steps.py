"""Makes an event of every step and drop, and measures some of the steps.

Every step goes to those who listen. The file gets each of the first `BURST` and then `KEPT_PER_S` a
second: a small model makes thousands, and 20 a second draw the same picture. The steps that the
file gets are measured too, as long as all measuring together takes less than `MEASURING_SHARE` of
the time: a small model's are all measured, one of 1 GiB has its norms once a minute.

What that costs a push: `python -m benchmarks.history`, and docs/decisions/0013-history.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
from stepwell_core.engine import Engine
from stepwell_core.norms import ParametersBefore, gradient_norm
from stepwell_core.push import Push, Staged
from stepwell_core.session import Result

from stepwell_server.history.events import Dropped, LossScaleChanged, Step
from stepwell_server.history.history import History

KEPT_PER_S = 20.0
BURST = 100

MEASURING_SHARE = 0.005
MEASURING_BURST_S = 0.005
"""What may be spent on measuring: 5 ms at once, and 0.5 % of the time."""

log = structlog.get_logger("stepwell")


class Allowance:
    """Something that grows with time up to a limit, and is spent.

    Args:
        per_s: How much comes in a second.
        most: The limit, and what there is at first.
        now: Seconds, of a clock that never goes back.
    """

    def __init__(self, per_s: float, most: float, now: float) -> None:
        self._per_s = per_s
        self._most = most
        self._left = most
        self._at = now

    def has_any(self, now: float) -> bool:
        """Return whether something is left."""
        self._left = min(self._most, self._left + self._per_s * (now - self._at))
        self._at = now
        return self._left > 0

    def spend(self, amount: float) -> None:
        """Take from it, also more than there is: then it takes longer until something is left."""
        self._left -= amount


@dataclass(frozen=True)
class Before:
    """What is known before a change is made.

    Attributes:
        loss_scale: Of the model.
        is_kept: Whether its event goes to the file.
        is_measured: Whether the parameters were copied, to be compared.
        gradient_norm: Of the gradient, measured while its memory is certainly its own: who is
            answered may write the next one there, and what waited gives its memory back.
        spent_s: What that took.
    """

    loss_scale: float | None
    is_kept: bool
    is_measured: bool
    gradient_norm: float | None = None
    spent_s: float = 0.0


_TOLD = Before(None, is_kept=False, is_measured=False)


class StepRecorder:
    """Tells a history of the pushes of one model. The lane's.

    Args:
        engine: Of the model.
        history: Of the model.
        clock: Seconds, never going back.
    """

    def __init__(
        self, engine: Engine, history: History, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._history = history
        self._clock = clock
        now = clock()
        self._steps = Allowance(KEPT_PER_S, BURST, now)
        self._drops = Allowance(KEPT_PER_S, BURST, now)
        self._measuring = Allowance(MEASURING_SHARE, MEASURING_BURST_S, now)
        self._parameters: ParametersBefore | None = None  # made when it is first needed
        self._gathered: list[tuple[Push, Result]] = []  # for the step that they will be in,
        self._gathered_in = engine.incarnation  # unless the history is cut before
        self._is_broken = False

    def before(self, staged: Staged) -> Before:
        """Look at the model before a change is made; does not raise."""
        scale = self._engine.loss_scale
        now = self._clock()
        if staged.scalars is None:
            return Before(scale, self._drops.has_any(now), is_measured=False)
        is_kept = self._steps.has_any(now)
        if not is_kept and scale is None:
            return _TOLD  # the way of almost every push of a small model
        if not is_kept or self._is_broken or not self._measuring.has_any(now):
            return Before(scale, is_kept, is_measured=False)
        try:
            if self._parameters is None:
                engine = self._engine
                self._parameters = ParametersBefore(
                    engine.store.current, engine.layout, engine.definition.state
                )
            self._parameters.keep(self._engine.store.current)
            norm = None
            if staged.gradient is not None and not staged.takes_buffer:
                norm = gradient_norm(staged.gradient, self._engine.definition.state)
        except Exception as error:  # no memory, or a bug: training goes on without norms
            self._give_up(error)
            return Before(scale, is_kept, is_measured=False)
        return Before(
            scale, is_kept, is_measured=True, gradient_norm=norm, spent_s=self._clock() - now
        )

    def after(self, staged: Staged, before: Before) -> None:
        """Add what the change was, once it is made and answered; does not raise."""
        try:
            if self._gathered_in != self._engine.incarnation:
                self._gathered, self._gathered_in = [], self._engine.incarnation
            if staged.scalars is None and staged.weight is not None:
                self._gathered += [(push.without_arrays(), got) for push, got in staged.results]
            elif staged.scalars is None:
                self._add_drops(staged, before)
            else:
                self._add_step(staged, before)
        except Exception as error:  # the change is made and answered, whatever became of this
            self._give_up(error)
        old, new = before.loss_scale, self._engine.loss_scale
        if old is not None and new is not None and old != new:
            self._history.add(LossScaleChanged(staged.counters.version, old, new))

    def _add_drops(self, staged: Staged, before: Before) -> None:
        for push, result in staged.results:
            version = staged.counters.version
            event = Dropped(version, push.worker, result.outcome, result.staleness)
            self._history.add(event, is_kept=before.is_kept)
            self._drops.spend(before.is_kept)

    def _add_step(self, staged: Staged, before: Before) -> None:
        gradient, update = self._norms(staged, before)
        scalars = staged.scalars
        results = (*self._gathered, *staged.results) if staged.takes_buffer else staged.results
        if staged.takes_buffer:
            self._gathered = []
        stalenesses = [result.staleness for _, result in results]
        event = Step.made(
            version=staged.counters.version,
            outcome="applied" if scalars is None or scalars.updates else "accumulated",
            workers=tuple([push.worker for push, _ in results]),
            learning_rate=0.0 if scalars is None else scalars.learning_rate,
            staleness_max=max(stalenesses, default=0),
            staleness_mean=sum(stalenesses) / max(len(stalenesses), 1),
            metrics=_metrics(results),
            gradient_norm=gradient,
            update_norm=update,
        )
        self._history.add(event, is_kept=before.is_kept)
        self._steps.spend(before.is_kept)

    def _norms(self, staged: Staged, before: Before) -> tuple[float | None, float | None]:
        if not before.is_measured or staged.gradient is None or self._parameters is None:
            return None, None
        began = self._clock()
        update = None
        if staged.scalars is not None and staged.scalars.changes_parameters:
            update = self._parameters.update_norm(self._engine.store.current)
        self._measuring.spend(before.spent_s + self._clock() - began)
        return before.gradient_norm, update

    def _give_up(self, error: Exception) -> None:
        """Measure no more until the server starts again; one line in the log."""
        self._is_broken = True
        log.error("history_of_steps_failed", model=self._engine.definition.name, exc_info=error)


def _metrics(results: Iterable[tuple[Push, Result]]) -> dict[str, dict[str, float]]:
    return {push.worker: dict(push.metrics) for push, _ in results if push.metrics}
