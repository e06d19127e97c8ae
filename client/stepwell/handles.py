"""What the blocking and the asyncio objects know without asking the server."""

from __future__ import annotations

from stepwell_core.layout import Layout

from stepwell.flows import ModelFlows
from stepwell.session import Session
from stepwell.shared_memory import SharedMemory


class ModelHandle:
    """A model of a server."""

    def __init__(self, flows: ModelFlows) -> None:
        self._flows = flows

    @property
    def name(self) -> str:
        """The model's name."""
        return self._flows.name

    @property
    def layout(self) -> Layout:
        """The model's tensors: names, shapes and dtypes, in order."""
        return self._flows.layout

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.layout!r}>"


class WorkerHandle:
    """One worker's session, and what it shares with a server on its host."""

    def __init__(self, session: Session, memory: SharedMemory) -> None:
        self._session = session
        self._memory = memory

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._session.worker

    @property
    def layout(self) -> Layout:
        """The model's tensors: names, shapes and dtypes, in order."""
        return self._session.layout

    @property
    def epoch(self) -> int:
        """The session's number, larger than that of any earlier session; -1 while there is none."""
        return self._session.epoch

    @property
    def version(self) -> int | None:
        """The version of the parameters that were pulled last; None before the first pull."""
        return self._session.version

    @property
    def loss_scale(self) -> float | None:
        """What to multiply the next loss by, with dynamic loss scaling; else None."""
        return self._session.loss_scale

    def __repr__(self) -> str:
        state = f"epoch {self._session.epoch}" if self._session.is_open else "not open"
        return f"<{type(self).__name__} {self.name!r} of {self._session.model!r}: {state}>"
