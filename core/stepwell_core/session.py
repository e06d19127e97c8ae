"""What the ledger keeps of one worker: its newest session, and the results of its last pushes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from stepwell_core import strict

STORED_RESULTS = 64
"""Results kept a session; an older repetition is answered `settled_before`."""

OUTCOMES = (
    "applied",
    "accumulated",
    "buffered",
    "waiting",
    "skipped_nonfinite",
    "dropped_stale",
    "dropped_late",
    "settled_before",
)


@dataclass(frozen=True)
class Result:
    """What became of a push.

    Attributes:
        outcome: One of `OUTCOMES`.
        version: The model's version after it: the number of changes so far.
        parameters_version: The version at which the parameters' bytes last changed.
        staleness: Changes of the parameters between those the gradient was computed at and the
            step.
        duplicate: Whether this answers a repetition; the push had its effect before, once.
        loss_scale: What the next loss is to be multiplied by, with dynamic loss scaling.
    """

    outcome: str
    version: int
    parameters_version: int
    staleness: int = 0
    duplicate: bool = False
    loss_scale: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: object) -> Result:
        """Return the result that `to_json` described; `value` may come from a stranger.

        Raises:
            ValueError: It is none.
        """
        said = strict.mapping(value, *(part.name for part in fields(cls)))
        if said["outcome"] not in OUTCOMES:
            raise ValueError("an outcome has another name")
        scale = said["loss_scale"]
        return cls(
            outcome=said["outcome"],
            version=strict.integer(said["version"]),
            parameters_version=strict.integer(said["parameters_version"]),
            staleness=strict.integer(said["staleness"]),
            duplicate=strict.boolean(said["duplicate"]),
            loss_scale=None if scale is None else strict.positive(scale),
        )


@dataclass
class Session:
    """The newest session of one worker.

    Attributes:
        worker: Its name.
        epoch: Larger than that of any earlier session of the model.
        is_open: False once it was closed.
        last_sequence: Of the last push that was admitted; -1 before the first.
        results: The last `STORED_RESULTS` results by sequence, oldest first.
        fingerprints: Of those pushes' payloads, where they are known; see `Gradient.fingerprint`.
        clock_start: What `clock` was when it was opened.
        previous: The worker's newest earlier session that admitted a push, with its last result
            alone; kept until this one admits a push, so that a repeated `open` tells it again.
    """

    worker: str
    epoch: int
    is_open: bool = True
    last_sequence: int = -1
    results: dict[int, Result] = field(default_factory=dict)
    fingerprints: dict[int, str] = field(default_factory=dict)
    previous: Session | None = None
    clock_start: int = 0

    @property
    def clock(self) -> int:
        """How many pushes were settled, in the count of the model's other workers.

        See `consistency/bounded.py`; a worker that comes begins where the slowest one is.
        """
        return self.clock_start + self.last_sequence + 1

    @property
    def last_result(self) -> Result | None:
        """The result of the last push that was admitted."""
        return self.results.get(self.last_sequence)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        results = {str(number): result.to_json() for number, result in self.results.items()}
        fingerprints = {str(number): value for number, value in self.fingerprints.items()}
        previous = None if self.previous is None else self.previous.to_json()
        return {
            **vars(self),
            "results": results,
            "fingerprints": fingerprints,
            "previous": previous,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Session:
        """Return the session that `to_json` described; `value` may come from a stranger.

        Raises:
            ValueError: It is none.
        """
        value = {"fingerprints": {}, "clock_start": 0, **strict.mapping(value)}  # since version 1
        value = strict.mapping(value, *(part.name for part in fields(cls)))
        last = strict.integer(value["last_sequence"], -1)
        said = strict.mapping(value["results"])
        first = last + 1 - len(said)
        if len(said) > STORED_RESULTS or first < 0 or (last >= 0 and not said):
            raise ValueError("a session has the results of its last pushes, and no others")
        numbers = range(first, last + 1)
        if said.keys() != set(map(str, numbers)):
            raise ValueError("a session has the results of its last pushes, in a row")
        known = strict.mapping(value["fingerprints"])
        if not known.keys() <= said.keys():
            raise ValueError("a fingerprint belongs to no result")
        previous = value["previous"]
        session = cls(
            worker=strict.identifier(value["worker"]),
            epoch=strict.integer(value["epoch"], 1),
            is_open=strict.boolean(value["is_open"]),
            last_sequence=last,
            results={number: Result.from_json(said[str(number)]) for number in numbers},
            fingerprints={
                number: strict.text(known[str(number)])
                for number in numbers
                if str(number) in known
            },
            clock_start=strict.integer(value["clock_start"], -strict.MOST),
        )
        if previous is not None:
            if strict.mapping(previous).get("previous") is not None:
                raise ValueError("a previous session has no previous one")
            session.previous = cls.from_json(previous)
        return session

    def copied(self) -> Session:
        """Return a session that may be changed while this one is read."""
        return replace(self, results=dict(self.results), fingerprints=dict(self.fingerprints))

    def last_alone(self) -> Session:
        """Return the session, closed, with the result of its last push and no other."""
        last = self.last_result
        results = {} if last is None else {self.last_sequence: last}
        return replace(self, is_open=False, results=results, fingerprints={}, previous=None)
