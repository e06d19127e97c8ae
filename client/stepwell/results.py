"""What calls return: plain values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt


class Parameters(Mapping[str, npt.NDArray[Any]]):
    """The parameters of one version, by name, in the model's order: a read-only mapping of arrays.

    Each array is float32 or float64, or of the dtype that was asked for, in its parameter's shape,
    C order. All arrays of a dtype are views of one buffer, which belongs to the caller, who may
    write to it; nothing else does while a view of it is alive. After that a later pull may use it
    again. After `pull(out=...)` they are the caller's arrays, after `pull(into=...)` none.

    Attributes:
        version: At which these bytes came to be; say it with a gradient that was computed from
            them.
        incarnation: Of the model's history.
        loss_scale: What to multiply the loss by, with dynamic loss scaling.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        version: int,
        incarnation: str,
        loss_scale: float | None = None,
        *,
        etag: str | None = None,
    ) -> None:
        self._arrays = dict(arrays)
        self.version = version
        self.incarnation = incarnation
        self.loss_scale = loss_scale
        self._etag = etag

    @property
    def etag(self) -> str | None:
        """The name by which the server knows these bytes again; None if it has none for them."""
        return self._etag

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Make the arrays read-only, and at the end of the block forget them."""
        for array in self._arrays.values():
            array.flags.writeable = False
        try:
            yield
        finally:
            self._arrays.clear()
            self._etag = None  # what is not there any more cannot be `cached`

    def __repr__(self) -> str:
        size = sum(array.size for array in self._arrays.values())
        return f"<Parameters at version {self.version}: {len(self)} tensors, {size} elements>"


@dataclass(frozen=True)
class PushResult:
    """What became of a push.

    Attributes:
        outcome: "applied", "accumulated", "skipped_nonfinite", "dropped_late", ...; see
            docs/protocol.md. `push` returns when it is settled, so never "waiting".
            "dropped_stale" with `on_stale="repull"`: the model's history was cut, and the push,
            which belonged to the old one, has no effect in the new.
        version: The model's version after it.
        parameters_version: The version at which the parameters' bytes last changed.
        staleness: Changes of the parameters between those the gradient was computed at and the
            step.
        duplicate: Whether this answers a repetition: the push had its effect before, once.
        loss_scale: What to multiply the next loss by, with dynamic loss scaling.
        parameters: After the push, if `push_pull` made it.
    """

    outcome: str
    version: int
    parameters_version: int
    staleness: int = 0
    duplicate: bool = False
    loss_scale: float | None = None
    parameters: Parameters | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the server.

    Attributes:
        id: Its name.
        version: Of the model in it.
        created: UTC, ISO 8601; "" if it is not known, since the manifest cannot be read.
        bytes: Size of its tensors' files; 0 if it is not known.
        pinned: Whether it is kept for ever.
        invalid: Why its manifest cannot be read, and so the checkpoint neither; None if it can,
            which says nothing of its tensors: `Model.verify` reads those.
    """

    id: str
    version: int
    created: str
    bytes: int
    pinned: bool = False
    invalid: str | None = None


@dataclass(frozen=True)
class CheckpointProgress:
    """How far a checkpoint is that is being written or read.

    Attributes:
        phase: "writing"; "verifying", which reads it back or was asked for; "reading", for a
            restore or a fork.
        done_bytes: Of this phase.
        bytes: Of this phase in all; 0 if it is not known yet.
    """

    phase: str
    done_bytes: int
    bytes: int
