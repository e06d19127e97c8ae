"""Asynchronous: every push is a step, whatever version its gradient was computed at.

Sources: Dean et al., 2012, "Large Scale Distributed Deep Networks" (Downpour SGD); for `scale`,
Zhang et al., 2015, "Staleness-aware Async-SGD for Distributed Deep Learning", eq. 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stepwell_core.consistency.base import (
    Consistency,
    Drop,
    P,
    Policy,
    Standing,
    Step,
    check_choice,
    check_count,
    staleness,
)
from stepwell_core.errors import InvalidArgument

ON_STALE = ("accept", "reject", "scale")
MAX_STALENESS = 2**31 - 1


@dataclass(frozen=True)
class Async(Consistency):
    """Every push is a step. No worker ever waits for another.

    Attributes:
        max_staleness: Versions that a gradient may be behind before `on_stale` says what happens;
            None sets no limit. Where it is set, each push has to say its version.
        on_stale: "accept": it is a step all the same. "reject": it is dropped, and its worker is
            told `dropped_stale`. "scale": the step's learning rate is divided by max(1, staleness);
            with no limit, that of each step.
    """

    max_staleness: int | None = None
    on_stale: str = "accept"

    mode: ClassVar[str] = "async"

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be."""
        super().__post_init__()
        if self.max_staleness is not None:
            check_count("max_staleness", self.max_staleness, 0, MAX_STALENESS)
        check_choice("on_stale", self.on_stale, ON_STALE)
        if self.on_stale == "reject" and self.max_staleness is None:
            raise InvalidArgument(
                "on_stale='reject' needs a limit: Async(max_staleness=4, on_stale='reject')"
            )

    @property
    def needs_version(self) -> bool:
        """Where there is a limit."""
        return self.max_staleness is not None

    def policy(self, standing: Standing = Standing()) -> Policy[P]:  # noqa: B008 - it is frozen
        """Return a policy that has no state at all."""
        return AsyncPolicy(self.max_staleness, self.on_stale)


class AsyncPolicy(Policy[P]):
    """Applies what comes; see `Async`."""

    def __init__(self, max_staleness: int | None, on_stale: str) -> None:
        self._limit = -1 if max_staleness is None else max_staleness
        self._on_stale = on_stale

    def offer(self, push: P, parameters_version: int) -> Step[P] | Drop:
        """Make a step of the push, unless it is too stale."""
        behind = staleness(push, parameters_version)
        if self._on_stale == "accept" or behind <= self._limit:
            return Step((push,))
        if self._on_stale == "reject":
            return Drop("dropped_stale")
        return Step((push,), scale=1.0 / max(1, behind))
