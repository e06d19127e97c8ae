"""What calls return: plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


class Parameters(Mapping[str, npt.NDArray[Any]]):
    """The parameters of one version, by name, in the model's order.

    The arrays belong to the caller, who may write to them; nothing else does.

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
    ) -> None:
        self._arrays = dict(arrays)
        self.version = version
        self.incarnation = incarnation
        self.loss_scale = loss_scale

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        size = sum(array.size for array in self._arrays.values())
        return f"<Parameters at version {self.version}: {len(self)} tensors, {size} elements>"


@dataclass(frozen=True)
class PushResult:
    """What became of a push.

    Attributes:
        outcome: "applied", "accumulated", "skipped_nonfinite", "dropped_late", ...; see
            docs/protocol.md.
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
        created: UTC, ISO 8601.
        bytes: Size of its tensors' files.
    """

    id: str
    version: int
    created: str
    bytes: int

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint that the server describes."""
        return cls(fields["id"], fields["version"], fields["created"], fields["bytes"])


def as_array(value: Any) -> npt.NDArray[Any]:
    """Return anything that NumPy can view as an array, in C order; a copy only if it must be."""
    array = np.asarray(value)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
