"""When do pushes become a step? The contract of a consistency mode.

A mode is two things: a frozen dataclass of its arguments, which is what users write and what is
saved (`stepwell.Sync(workers=4)`), and a `Policy`, the state of one model under it. A policy
decides; it applies nothing. Pure: time comes in as an argument, if at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar


class Contribution(Protocol):
    """What a policy knows of a push."""

    @property
    def worker(self) -> str:
        """Name of the worker."""

    @property
    def version(self) -> int | None:
        """The parameters' version that the gradient was computed at; None if it never pulled."""


P = TypeVar("P", bound=Contribution)


@dataclass(frozen=True)
class Step(Generic[P]):
    """These pushes make one step, reduced in this order."""

    pushes: tuple[P, ...]


@dataclass(frozen=True)
class Wait:
    """The push waits for others; the policy keeps it."""


@dataclass(frozen=True)
class Drop:
    """The push has no effect, and its worker is told the outcome."""

    outcome: str


class Policy(ABC, Generic[P]):
    """The state of one model under one mode. Not thread-safe: the model's writer alone uses it."""

    @abstractmethod
    def offer(self, push: P, parameters_version: int) -> Step[P] | Wait | Drop:
        """Decide on a push.

        Args:
            push: Kept by the policy if the answer is `Wait`.
            parameters_version: The version of the parameters as they are.
        """

    @property
    @abstractmethod
    def waiting(self) -> Sequence[P]:
        """The pushes that wait, in the order in which they would be reduced."""

    @abstractmethod
    def join(self, worker: str) -> None:
        """Note that a worker opened a session; a push of its earlier session no longer waits.

        Where gradients are added on arrival no other push waits then either.
        """

    @abstractmethod
    def leave(self, worker: str) -> Step[P] | None:
        """Note that a worker closed its session.

        Its waiting push is forgotten, and where gradients are added on arrival all others with it.
        Returns the step that others no longer have to wait for, if any.
        """


@dataclass(frozen=True)
class Consistency(ABC):
    """The arguments of a mode."""

    mode: ClassVar[str]

    @property
    def most_kept(self) -> int:
        """How many gradients are kept in memory at most until their step is made."""
        return 0

    @property
    def adds_on_arrival(self) -> bool:
        """Whether a gradient is added to a running sum when it comes, and cannot be taken out."""
        return False

    @abstractmethod
    def policy(self, members: Iterable[str] = (), most_open: int = 0) -> Policy[Any]:
        """Return a new policy, for which nothing waits.

        Args:
            members: The workers whose sessions are open.
            most_open: How many were open at once since the last time that nobody's was; with
                `members` it is all that has to outlive a restart.
        """

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the mode and its arguments."""
        return {"mode": self.mode, **asdict(self)}
