"""One worker of a model: the blocking shell around its session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeVar, Unpack

from stepwell_core.layout import Array
from stepwell_core.wire import Kind

from stepwell.destinations import InPlace
from stepwell.driver import Driver
from stepwell.handles import WorkerHandle
from stepwell.heartbeat import Heartbeat
from stepwell.optimizers import Hyperparameters
from stepwell.pulls import PullOptions
from stepwell.results import Parameters, PushResult
from stepwell.retry import Flow
from stepwell.session import Session
from stepwell.shared_memory import SharedMemory

T = TypeVar("T")


class Worker(WorkerHandle):
    """One worker's session. A context manager; not thread-safe, and a forked process has none."""

    def __init__(self, driver: Driver, session: Session, memory: SharedMemory) -> None:
        super().__init__(session, memory)
        self._driver = driver
        self._heartbeat = Heartbeat(session, driver.run)

    def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end; it may open the session, and may take long."""
        self._heartbeat.start()
        return self._driver.run(flow, self._memory)

    def open(self) -> Self:
        """Open a session, or a new one after `StaleIncarnation`; pull before the next push.

        An older session of this worker, in whatever process, can push no more.
        """
        self._run(self._session.open())
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
        self._forget_pulled()
        return self._note_pulled(self._run(self._session.pull(**options)))

    def push(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        kind: Kind = "gradient",
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
            weight: In an aggregate, such as the number of examples; from 2^-64 to 2^64.
            metrics: Up to 64 finite numbers for the history, such as the loss, by name.
            hyperparameters: Values for those that were declared to come with each push; those of a
                group are `group/name`.
            kind: "delta" says that they are `local - pulled` after local steps; see `push_delta`.
            version: Of the parameters that the gradients were computed at; default: those that
                were pulled last.
            loss_scale: What the loss was multiplied by; default: `self.loss_scale`. Of a delta it
                has no meaning.
            state: Values of tensors that are not optimized, in their own dtypes; they replace the
                old ones in the same step. Of several workers at a barrier the last by name counts,
                of those whose pushes are gathered the last that came.

        Returns:
            What became of it. In synchronous mode this comes when the step is made.

        Raises:
            InvalidInput: A gradient does not fit, or has NaN in it; nothing changed.
            MixedKinds: Other workers push deltas into the step, or gradients; nothing changed.
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
            kind=kind,
            version=version,
            loss_scale=loss_scale,
            state=state,
        )
        return self._run(flow)

    def push_pull(
        self,
        gradients: Mapping[str, Any],
        *,
        dtype: str | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        kind: Kind = "gradient",
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
            kind=kind,
            version=version,
            loss_scale=loss_scale,
            state=state,
        )
        self._forget_pulled()
        return self._note_pulled(self._run(flow))

    def push_delta(
        self,
        parameters: Mapping[str, Any],
        *,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> PushResult:
        """Push what local steps have added to the parameters that were pulled last.

        The server takes `-(parameters - pulled)` as a gradient, the pseudo-gradient: with SGD and
        learning rate 1 that is federated averaging (McMahan et al. 2017), with Nesterov momentum
        the outer step of DiLoCo (Douillard et al. 2023). The model's loss scale plays no part.

        Args:
            parameters: After local steps: exactly the names and shapes that were pulled, of
                float16, float32 or float64; anything NumPy can view. Read until this returns, not
                kept and not written to. They must be copies: what the last `pull` or `push_pull`
                returned is what is subtracted from them. The worker keeps those arrays until the
                next pull, and nobody may write to them before this returns.
            weight: See `push`.
            metrics: See `push`.
            hyperparameters: See `push`.
            state: Values of tensors that are not optimized, which are sent as they are; None for
                one that is to stay as it is. These names are then not in `parameters`.

        Returns:
            What became of it; see `push`. Then pull, for the next local steps.

        Raises:
            InvalidInput: Nothing was pulled, or not these tensors, or into the very memory that
                `parameters` are; or the push was refused. Nothing changed.
            StepwellError: As `push`.
        """
        with self._making_delta():
            delta = self._delta(parameters, self.gradient_buffer(), state)
            return self.push(
                delta,
                weight=weight,
                metrics=metrics,
                hyperparameters=hyperparameters,
                kind="delta",
                state=state,
            )

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
            parameters = self._run(self._session.pull(destination))
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
        self._heartbeat.stop()
        if self._session.is_open:
            with contextlib.suppress(Exception):  # nothing here may mask what ended the block
                self._driver.run(self._session.close())
        self._forget_pulled()
        self._memory.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exception: object) -> None:
        self.close()
