"""What a run of kills is to be, and what was seen in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.faults.history import Violation
from tests.faults.proxy import CALM, Fault

PUSH_POINTS = ("push.staged", "journal.before_append", "journal.appended", "push.committed")
SYNC_POINTS = ("journal.synced",)  # under `always`
CHECKPOINT_POINTS = (
    "checkpoint.cut",
    "checkpoint.files_written",
    "checkpoint.manifest_written",
    "checkpoint.renamed",
    "checkpoint.verified",
    "journal.segments_removed",
)
RESTORE_POINTS = ("restore.checkpoint_written", "restore.adopted")
START_POINTS = ("recovery.read", "recovery.replayed")
EVERYSEC_POINTS = PUSH_POINTS + CHECKPOINT_POINTS + START_POINTS
ALWAYS_POINTS = EVERYSEC_POINTS + SYNC_POINTS

EXTRA_KILLS = 12
"""For places that a busy machine did not reach in time."""


def faults(largest: int) -> tuple[Fault, ...]:
    """Return what a proxy may do to connections on which bodies of a size travel."""
    return (
        *[CALM] * 4,
        Fault(latency_s=0.002),
        Fault(bytes_per_s=50.0 * largest),
        *(Fault(loses_answer=n) for n in (1, 4, 20)),
        *(Fault(cut_answer_after=n) for n in (60, largest // 2, 5 * largest)),
        *(Fault(cut_request_after=n) for n in (100, largest // 2, 7 * largest)),
        Fault(cut_request_after=3 * largest, has_reset=False),
        Fault(cut_answer_after=3 * largest, has_reset=False),
    )


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        seed: Of everything that is drawn; what it meets still depends on the machine's speed.
        kills: How many.
        durability: Of the server.
        promised: What the history is checked against: `durability` by default.
        is_sync: Whether the model is synchronous.
        workers: How many processes.
        transport: "http" through the proxy, or "auto": shared memory past it.
        points: Named places where it is killed, one after the other in an order that is drawn, at
            two kills of three; the third is at a random moment. A place that is not reached in time
            is tried again, if need be in a few kills more than `kills`; see `reaches_all`.
        restores: Whether checkpoints are restored, between kills and in them.
        power_losses: How often, from 0 to 1, a kill at no named place takes the power too.
        stops: How often the server is stopped by SIGTERM instead; that is no kill.
        large_rows: See `Task`.
        bug: Of `server_program.BUGS`.
        longest_s: Between the first calls of the workers and a kill at no named place.
    """

    seed: int
    kills: int
    durability: str = "always"
    promised: str = ""
    is_sync: bool = False
    workers: int = 3
    transport: str = "http"
    points: tuple[str, ...] = ALWAYS_POINTS
    restores: bool = False
    power_losses: float = 0.0
    stops: float = 0.1
    large_rows: int = 0
    bug: str = ""
    longest_s: float = 0.3

    def __post_init__(self) -> None:
        if self.durability != "always" and set(self.points) & set(SYNC_POINTS):
            raise ValueError(f"under {self.durability} no server comes to {SYNC_POINTS}")

    @property
    def reaches_all(self) -> bool:
        """Whether there are kills enough for all named places."""
        return len(self.points) <= self.kills - -(-self.kills // 3)

    @property
    def may_cut(self) -> bool:
        """Whether a crash may take the history's tail."""
        promised = self.promised or self.durability
        return promised == "memory" or (promised == "everysec" and self.power_losses > 0)


@dataclass
class Report:
    """What was seen in a run.

    Attributes:
        kills: By kind.
        stops: In order, by SIGTERM.
        errors: That workers met, by code.
        duplicates: Answers that were repeated ones.
        cuts: Times that the history was cut, restores included.
    """

    plan: Plan
    violations: list[Violation] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    recoveries: int = 0
    pushes: int = 0
    pulls: int = 0
    duplicates: int = 0
    cuts: int = 0
    connections: int = 0
    broken: int = 0

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.plan}: {self.summary()}", *(f"  {v}" for v in self.violations[:20])]
        )

    def summary(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kills": dict(self.kills),
            "stops": self.stops,
            "recoveries": self.recoveries,
            "pushes": self.pushes,
            "pulls": self.pulls,
            "duplicates": self.duplicates,
            "cuts": self.cuts,
            "errors": dict(self.errors),
            "connections": self.connections,
            "broken": self.broken,
            "violations": len(self.violations),
        }
