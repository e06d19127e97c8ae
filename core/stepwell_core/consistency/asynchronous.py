"""Asynchronous: every push is a step, whatever version its gradient was computed at.

Source: Dean et al., 2012, "Large Scale Distributed Deep Networks" (Downpour SGD).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from stepwell_core.consistency.base import Consistency, P, Policy, Step


@dataclass(frozen=True)
class Async(Consistency):
    """Every push is a step. No worker ever waits for another."""

    mode: ClassVar[str] = "async"

    def policy(self, members: Iterable[str] = (), most_open: int = 0) -> Policy[P]:
        """Return a policy that has no state at all."""
        return AsyncPolicy()


class AsyncPolicy(Policy[P]):
    """Applies what comes."""

    def offer(self, push: P, parameters_version: int) -> Step[P]:
        """Make a step of the push."""
        return Step((push,))

    @property
    def waiting(self) -> Sequence[P]:
        """Nothing ever waits."""
        return ()

    def join(self, worker: str) -> None:
        """Nobody has to be known."""

    def leave(self, worker: str) -> None:
        """Nobody is waited for."""
