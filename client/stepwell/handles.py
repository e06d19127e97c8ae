"""What the blocking and the asyncio objects know without asking the server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from stepwell_core.errors import InvalidInput, PushInFlight
from stepwell_core.layout import Array, Layout

from stepwell.deltas import delta_of
from stepwell.flows import ModelFlows
from stepwell.results import Parameters
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
        self._pulled: Parameters | None = None  # what the next delta is made from
        self._pulled_in = ""  # the session's incarnation at that time
        self._is_making_delta = False

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

    def _forget_pulled(self) -> None:
        """Let go of what was pulled before, so that its memory may be used for the next pull."""
        self._pulled = None

    def _note_pulled(self, parameters: Parameters) -> Parameters:
        """Keep what was pulled, for the next delta, and return it."""
        self._pulled, self._pulled_in = parameters, self._session.incarnation
        return parameters

    @contextlib.contextmanager
    def _making_delta(self) -> Iterator[None]:
        """Refuse a second delta, or one beside a push: both would be written into one buffer."""
        if self._is_making_delta or self._session.is_pushing:
            raise PushInFlight(
                f"Worker {self.name!r} has another push under way, and makes one at a time. Give "
                "each thread or task a worker of its own"
            )
        self._is_making_delta = True
        try:
            yield
        finally:
            self._is_making_delta = False

    def _delta(
        self,
        parameters: Mapping[str, Any],
        buffer: Mapping[str, Array],
        state: Mapping[str, Any] | None,
    ) -> Mapping[str, Array]:
        """Write `parameters - pulled` into a buffer, and return it; see `delta_of`."""
        return delta_of(parameters, self._last_pulled(), self._session.layout, buffer, state or ())

    def _last_pulled(self) -> Parameters:
        """Return what the session counts as pulled last.

        Raises:
            InvalidInput: There is none, or its arrays are not known any more.
        """
        pulled, session = self._pulled, self._session
        if pulled is None or self._pulled_in != session.incarnation:
            raise self._nothing_pulled()
        if pulled.incarnation != session.incarnation:
            return pulled  # history was cut: the server says so, and `on_stale` what to do
        if session.version is None:
            raise self._nothing_pulled()
        if pulled.version != session.version:
            raise InvalidInput(
                f"A delta is the difference to what worker {self.name!r} pulled last, which is "
                f"version {session.version} by a view. Received with arrays of version "
                f"{pulled.version}; pull again before the local steps"
            )
        return pulled

    def _nothing_pulled(self) -> InvalidInput:
        return InvalidInput(
            f"A delta is the difference to what worker {self.name!r} pulled last. Received without "
            "a pull in this session; pull, train on a copy, then push the delta"
        )

    def __repr__(self) -> str:
        state = f"epoch {self._session.epoch}" if self._session.is_open else "not open"
        return f"<{type(self).__name__} {self.name!r} of {self._session.model!r}: {state}>"
