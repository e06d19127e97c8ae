"""When do pushes become a step? The contract of a consistency mode.

A mode is two things: a frozen dataclass of its arguments, which is what users write and what is
saved (`stepwell.Sync(workers=4)`), and a `Policy`, the state of one model under it. A policy
decides; it applies nothing. Pure: who is there is told to it, time it does not know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from stepwell_core.errors import InvalidArgument, shown

LEASE_S = 30.0
PATIENCE_LEASES = 10
SHORTEST_LEASE_S = 0.1
LONGEST_LEASE_S = 7 * 86_400.0


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
    """These pushes make one step, reduced in this order.

    Attributes:
        pushes: At least one.
        scale: What the step's learning rate is multiplied by.
    """

    pushes: tuple[P, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class Gather:
    """The push is answered at once, and its gradient added to those gathered before.

    Attributes:
        discount: What the gradient is multiplied by.
        completes: Whether the step is made now, of all that were gathered.
    """

    discount: float
    completes: bool


@dataclass(frozen=True)
class Wait:
    """The push waits for others; the policy keeps it."""


@dataclass(frozen=True)
class Drop:
    """The push has no effect, and its worker is told the outcome."""

    outcome: str


@dataclass(frozen=True)
class Standing:
    """All of a policy that has to outlive a restart.

    Attributes:
        members: The workers whose sessions are open, with the clock of each: how many pushes of it
            were settled since the mode was chosen, or since it came, in the others' count.
        most_open: How many were open at once since the last time that nobody's was.
        gathered: How many gradients were gathered since the last step.
    """

    members: Mapping[str, int] = field(default_factory=dict)
    most_open: int = 0
    gathered: int = 0


class Policy(ABC, Generic[P]):
    """The state of one model under one mode. Not thread-safe: the model's writer alone uses it."""

    @abstractmethod
    def offer(self, push: P, parameters_version: int) -> Step[P] | Gather | Wait | Drop:
        """Decide on a push.

        Args:
            push: Kept by the policy if the answer is `Wait`.
            parameters_version: The version of the parameters as they are.
        """

    @property
    def waiting(self) -> Sequence[P]:
        """The pushes that wait, in the order in which they would be reduced."""
        return ()

    def due(self) -> Step[P] | None:
        """Return a step that those who wait can make now, if any; they wait no more.

        To be asked again until there is none, whenever something happened.
        """
        return None

    def must_wait(self, worker: str) -> bool:
        """Return whether a push of the worker would wait if it came now.

        Only where one push alone makes a step. As long as the worker stays and makes no push, what
        was False stays False.
        """
        return False

    def join(self, worker: str, clock: int = 0) -> None:
        """Note that a worker opened a session; a push of its earlier session no longer waits.

        Where gradients are added on arrival no other push waits then either.

        Args:
            worker: Its name.
            clock: Where its count of pushes begins; see `Standing`.
        """

    def leave(self, worker: str) -> None:
        """Note that a worker's session ended.

        Its waiting push is forgotten, and where gradients are added on arrival all others with it.
        """

    def settled(self, worker: str, outcome: str) -> None:
        """Note that a push of a worker got its outcome, and that this cannot be taken back."""


@dataclass(frozen=True, kw_only=True)
class Consistency(ABC):
    """The arguments of a mode; these are those that all have.

    Attributes:
        lease_s: Seconds that a worker may be silent; then its session ends and nobody waits for it.
        patience_s: Seconds that a worker may go without a push although it gives signs of life;
            None takes 10 leases. A push that waits is no silence.
    """

    lease_s: float = LEASE_S
    patience_s: float | None = None

    mode: ClassVar[str]

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be."""
        check_seconds("lease_s", self.lease_s)
        if self.patience_s is not None:
            check_seconds("patience_s", self.patience_s)
            if self.patience_s < self.lease_s:
                raise InvalidArgument(
                    "`patience_s` is for workers that live, so it is `lease_s` or more. Received: "
                    f"patience_s={self.patience_s}, lease_s={self.lease_s}"
                )

    @property
    def patience(self) -> float:
        """`patience_s`, or its default, in seconds."""
        return PATIENCE_LEASES * self.lease_s if self.patience_s is None else self.patience_s

    @property
    def most_kept(self) -> int:
        """How many gradients have a place in memory until their step is made, also while they come.

        The server reserves so much, so that none waits for another's place.
        """
        return 0

    @property
    def most_in_step(self) -> int:
        """How many gradients a push may make one of at most, when it comes."""
        return max(1, self.most_kept)

    @property
    def adds_on_arrival(self) -> bool:
        """Whether a gradient is added to a running sum when it comes, and cannot be taken out."""
        return False

    @property
    def gathers(self) -> bool:
        """Whether pushes are answered before their step is made; see `Gather`."""
        return False

    @property
    def needs_version(self) -> bool:
        """Whether each push has to say at which version its gradient was computed."""
        return False

    @property
    def gates(self) -> bool:
        """Whether `Policy.must_wait` has something to say."""
        return False

    @abstractmethod
    def policy(self, standing: Standing = Standing()) -> Policy[Any]:
        """Return a new policy, for which nothing waits."""

    def miniature(self, workers: int) -> Consistency:
        """Return the mode for a rehearsal: the same code for so many workers at most."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Return plain values: the mode and its arguments."""
        return {"mode": self.mode, **asdict(self)}


def check_count(name: str, value: object, least: int, most: int) -> None:
    """Refuse what is no integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgument(
            f"`{name}` must be an integer from {least} to {most}. Received: {name}={shown(value)}"
        )


def check_seconds(name: str, value: object) -> None:
    """Refuse what is no number of seconds that a worker could be silent."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A comparison is False with NaN, and exact with integers that no float is as large as.
    if not (is_number and SHORTEST_LEASE_S <= value <= LONGEST_LEASE_S):  # type: ignore[operator]
        raise InvalidArgument(
            f"`{name}` is a number of seconds from {SHORTEST_LEASE_S} to {LONGEST_LEASE_S:.0f}. "
            f"Received: {name}={shown(value)}"
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is not one of some words."""
    if value not in choices:
        raise InvalidArgument(
            f"`{name}` must be one of {', '.join(choices)}. Received: {name}={shown(value)}"
        )


def staleness(push: Contribution, parameters_version: int) -> int:
    """Return the changes of the parameters since those that a gradient was computed at."""
    return 0 if push.version is None else parameters_version - push.version
