"""One worker of a model: the blocking shell around its session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Self, Unpack

from stepwell_core.layout import Array

from stepwell.destinations import InPlace
from stepwell.driver import Driver
from stepwell.handles import WorkerHandle
from stepwell.optimizers import Hyperparameters
from stepwell.pulls import PullOptions
from stepwell.results import Parameters, PushResult
from stepwell.session import Session
from stepwell.shared_memory import SharedMemory


class Worker(WorkerHandle):
    """One worker's session. A context manager; not thread-safe, and a forked process has none."""

    def __init__(self, driver: Driver, session: Session, memory: SharedMemory) -> None:
        super().__init__(session, memory)
        self._driver = driver

    def open(self) -> Self:
        """Open a session, or a new one after `StaleIncarnation`; pull before the next push.

        An older session of this worker, in whatever process, can push no more.
        """
        self._driver.run(self._session.open())
        return self

    def pull(self, **options: Unpack[PullOptions]) -> Parameters:
        """Pull the parameters; the next gradient counts as computed at them.

        Args:
            options: See `Model.pull`.

        Returns:
            Arrays that belong to the caller; see `Model.pull`.

        Raises:
            StaleIncarnation: With `min_version`: the model was restored or overwritten.
        """
        return self._driver.run(self._session.pull(**options), self._memory)

    def push(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        version: int | None = None,
        loss_scale: float | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> PushResult:
        """Push gradients; they have their effect once, however often the network fails.

        Args:
            gradients: By parameter name, in the parameters' shapes; anything NumPy can view. Of
                the parameters' dtypes, or all of one: float16, bfloat16, float32, float64. Torch
                tensors are detached and moved to the CPU. Parameters without one, or with None,
                are left alone. Not copied if in C order: they must not change until this returns.
            dtype: "bfloat16" or "float16", if gradients are the bits of that as uint16.
            weight: In an aggregate, such as the number of examples; finite and > 0.
            metrics: Numbers for the history, such as the loss.
            hyperparameters: Values for those that were declared to come with each push; those of a
                group are `group/name`.
            version: Of the parameters that the gradients were computed at; default: those that
                were pulled last.
            loss_scale: What the loss was multiplied by; default: `self.loss_scale`.
            state: Values of tensors that are not optimized, in their own dtypes; they replace the
                old ones in the same step. Of several workers at a barrier the last by name counts.

        Returns:
            What became of it. In synchronous mode this comes when the step is made.

        Raises:
            InvalidInput: A gradient does not fit, or has NaN in it; nothing changed.
            StaleIncarnation: The model was restored or overwritten: `open()` and `pull()`, then go
                on.
            Fenced: Another process uses this worker's name.
            PushInFlight: Another thread or task is pushing with this worker.
            TransportError, Unavailable: There was no answer for `retry_s`. `resolve()` tells what
                became of this push; the next push asks that first by itself.
        """
        flow = self._session.push(
            gradients,
            dtype=dtype,
            weight=weight,
            metrics=metrics,
            hyperparameters=hyperparameters,
            version=version,
            loss_scale=loss_scale,
            state=state,
        )
        return self._driver.run(flow, self._memory)

    def push_pull(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        version: int | None = None,
        loss_scale: float | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Parameters:
        """Push gradients and get the new parameters, in one round trip; see `push` and `pull`."""
        flow = self._session.push_pull(
            gradients,
            dtype=dtype,
            weight=weight,
            metrics=metrics,
            hyperparameters=hyperparameters,
            version=version,
            loss_scale=loss_scale,
            state=state,
        )
        return self._driver.run(flow, self._memory)

    def gradient_buffer(self) -> dict[str, Array]:
        """Return a gradient to write into, which `push` then copies nowhere.

        Ask for it again for each push, fill it, and push it, or some of its tensors. While the push
        is under way it is the server's. Where no memory is shared it is plain memory.

        Returns:
            Writable arrays by name, in the parameters' shapes and dtypes. They hold what was
            written for an earlier push, or zeros. A forked process sees the very same memory.
        """
        self._driver.finds(self._memory)
        return self._memory.gradient_buffer()

    @contextlib.contextmanager
    def view(self) -> Iterator[Parameters]:
        """Look at the parameters where the server keeps them: `with worker.view() as parameters`.

        The same as `pull`, but no copy is made if the server shares its memory. One version, that
        does not change inside the block, whatever others push. As long the server keeps a buffer
        for it, of the three that it has to spare, or the only one for a model of 1 GiB or more:
        keep the block short, and pull behind it.

        Returns:
            Read-only arrays. They mean nothing after the block: do not keep them, nor views of
            them. After it the mapping is empty.

        Raises:
            VersionsExhausted: Readers kept all those buffers for `retry_s`.
        """
        destination = InPlace()
        try:
            parameters = self._driver.run(self._session.pull(destination), self._memory)
            with parameters.looked_at():
                yield parameters
        finally:
            destination.let_go()

    def resolve(self) -> PushResult | None:
        """Learn what became of the last push, for one that raised or was interrupted.

        Returns:
            Its result, or None if it had no effect and never will.

        Raises:
            TransportError, Unavailable: There was no answer for `retry_s`.
        """
        return self._driver.run(self._session.resolve())

    def close(self) -> None:
        """Close the session within a second, at best effort: a server that is gone is no error."""
        if self._session.is_open:
            with contextlib.suppress(Exception):  # nothing here may mask what ended the block
                self._driver.run(self._session.close())
        self._memory.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exception: object) -> None:
        self.close()
