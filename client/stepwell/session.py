"""A worker's session: who it is, which push comes next, and what it does when an answer is lost.

A push whose answer did not come is *unresolved*: it may have had its effect, have none, or have it
later, since the server may still be reading it. Before the next push the session asks. If the
server does not know the push, the session takes a new epoch: from then on the old one can push no
more, and the server's answer says for certain whether it ever did.

Pure bookkeeping and flows; `driver.py` and `async_driver.py` drive them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Unpack

from stepwell_core.errors import (
    InvalidArgument,
    MalformedMessage,
    PayloadMismatch,
    PushInFlight,
    PushNotFound,
    SessionExpired,
    StaleIncarnation,
    StepwellError,
    UnknownSession,
    shown,
)
from stepwell_core.layout import Layout
from stepwell_core.wire import Kind

from stepwell import calls
from stepwell.calls import Answer, Call, model_path
from stepwell.destinations import Destination
from stepwell.drops import Drops
from stepwell.optimizers import Hyperparameters
from stepwell.pulls import PullOptions, Pulls
from stepwell.push_numbers import said_of, values_of
from stepwell.results import Parameters, PushResult
from stepwell.retry import Flow, Patience, repeatedly

WAIT_S = 20.0
"""How long one question for a push that waits may take; shorter than the read timeout."""

CLOSE_S = 1.0
"""How long closing may take; a server that is gone must not hold up a program that ends."""

ON_STALE = ("raise", "repull")

REFUSALS = frozenset({400, 415, 422})
"""Statuses that each repetition of the same bytes meets too: so no earlier one had an effect."""

log = logging.getLogger("stepwell")


class Session:
    """One worker of one model. Not thread-safe: one push at a time is in flight.

    Args:
        model: Name of the model.
        layout: Of the model.
        worker: Name of the worker; at any time one process may use it.
        hyperparameters: Values or callables for those that come with each push.
        patience: How long a call is repeated before its error is raised.
        on_stale: What to do when the model's history was cut: "raise" `StaleIncarnation`, or
            "repull": go on in the new one from its parameters; see `push`.

    Attributes:
        epoch: Of the session at the server; -1 before the first.
        incarnation: Of the model's history when the session was opened.
        sequence: Of the next push, or of the present one while it is unresolved.
        version: Of the parameters that were pulled last; None before.
        loss_scale: What to multiply the next loss by, with dynamic loss scaling.
        lease_s: How long this worker may be silent; None if the server is older and does not mind.
        on_open: Called when a session was opened, by whoever drives the flow.
    """

    def __init__(
        self,
        model: str,
        layout: Layout,
        worker: str,
        hyperparameters: Hyperparameters,
        patience: Patience,
        on_stale: str = "raise",
    ) -> None:
        if on_stale not in ON_STALE:
            raise InvalidArgument(
                f"`on_stale` is one of {', '.join(ON_STALE)}. Received: {shown(on_stale)}"
            )
        self.model = model
        self.layout = layout
        self.worker = worker
        self.epoch = -1
        self.incarnation = ""
        self.sequence = 0
        self.version: int | None = None
        self.loss_scale: float | None = None
        self.lease_s: float | None = None
        self.on_open: Callable[[], None] = _do_nothing
        self._hyperparameters = dict(hyperparameters)
        self._on_stale = on_stale
        self._patience = patience
        self._pulls = Pulls(model, layout, patience)
        self._drops = Drops(model, worker)
        self._pid: int | None = None  # of the process that opened it; None if it is not open
        self._is_unresolved = False
        self._is_pushing = False
        self._is_taking_epoch = False  # and was not told which
        self._last_result: PushResult | None = None

    # Opening and closing

    @property
    def is_open(self) -> bool:
        """Whether this process opened the session and did not close it yet."""
        return self._pid == os.getpid()

    def open(self) -> Flow[None]:
        """Open the session, or a new one in its place; an older one of this worker is fenced."""
        answer = yield from self._take_new_epoch()
        self.incarnation = answer["incarnation"]
        self.loss_scale = answer["loss_scale"]
        self.version = None

    def close(self) -> Flow[None]:
        """Close the session; one try."""
        self._pid = None
        self._pulls.buffers.clear()
        path = model_path(self.model, "workers", self.worker)
        query = {"epoch": self.epoch, "incarnation": self.incarnation}
        yield Call("DELETE", path, query, timeout_s=CLOSE_S)

    def heartbeat(self) -> Flow[None]:
        """Renew the lease, which may be another from now on; one try."""
        path = model_path(self.model, "workers", self.worker, "heartbeat")
        body = {"epoch": self.epoch, "incarnation": self.incarnation}
        timeout_s = None if self.lease_s is None else max(self.lease_s / 3, 1.0)
        answer = yield Call("POST", path, json=body, timeout_s=timeout_s)
        self.lease_s = answer.fields.get("lease_s", self.lease_s)

    def _take_new_epoch(self) -> Flow[Answer]:
        """Open a session at the server; whether an unresolved push had its effect is known then.

        The incarnation stays: if history was cut, the next push is told so.
        """
        path = model_path(self.model, "workers")
        call = Call("POST", path, json={"worker": self.worker})
        self._is_taking_epoch = True  # from here on the server may have fenced the present one
        answer = yield from repeatedly(call, self._patience)
        self._is_taking_epoch = False
        if self._is_unresolved:
            self._settle(self._result_in(answer))
        self.epoch, self.sequence = answer["epoch"], 0
        self._pid = os.getpid()
        self.lease_s = answer.fields.get("lease_s")
        self.on_open()
        return answer

    def _result_in(self, opened: Answer) -> PushResult | None:
        """Return what the unresolved push got; None if it has no effect in the present history."""
        previous = opened["previous"]
        if previous is None or opened["incarnation"] != self.incarnation:
            return None
        last = (calls.required(previous, "epoch"), calls.required(previous, "last_sequence"))
        if last != (self.epoch, self.sequence):
            return None
        return replace(calls.read_result(calls.required(previous, "result")), duplicate=True)

    def _ensure_open(self) -> Flow[None]:
        if self._pid is None:
            yield from self.open()
        elif not self.is_open:
            raise UnknownSession(
                f"The session of worker {self.worker!r} belongs to the process that opened it; in "
                "a forked process open one with a name of its own: model.worker(...)"
            )
        elif self._is_taking_epoch:  # nobody said which: without this it would be fenced for ever
            yield from self._take_new_epoch()

    # Pulls and pushes

    @property
    def is_pushing(self) -> bool:
        """Whether a push is under way."""
        return self._is_pushing

    def pull(
        self, destination: Destination | None = None, **options: Unpack[PullOptions]
    ) -> Flow[Parameters]:
        """Pull all parameters; the next gradient counts as computed at them."""
        yield from self._ensure_open()
        try:
            return (yield from self._pull(destination, **options))
        except StaleIncarnation as error:  # it was asked for a version of the old history
            if self._on_stale == "raise":
                raise
            self._warn_of(error)
        yield from self.open()
        options.pop("min_version", None)
        return (yield from self._pull(destination, **options))

    def _pull(
        self, destination: Destination | None, **options: Unpack[PullOptions]
    ) -> Flow[Parameters]:
        cached = options.get("cached")
        parameters = yield from self._pulls.pull(
            incarnation=self.incarnation, destination=destination, **options
        )
        if parameters is not cached:
            self.loss_scale = parameters.loss_scale  # that of `cached` may be an old one
        return self._note(parameters)

    def push(
        self,
        gradients: Mapping[str, Any],
        *,
        pulls: bool = False,
        dtype: str | None = None,
        state: Mapping[str, Any] | None = None,
        weight: float = 1.0,
        metrics: Mapping[str, float] | None = None,
        hyperparameters: Hyperparameters | None = None,
        kind: Kind = "gradient",
        version: int | None = None,
        loss_scale: float | None = None,
    ) -> Flow[PushResult]:
        """Push gradients and wait for what becomes of them.

        If the model's history was cut and `on_stale` is "repull", the gradients, which belong to
        the old one, are dropped: the session is opened anew and the parameters are pulled.
        """
        yield from self._ensure_open()
        said = said_of(
            version=self.version if version is None else version,
            kind=kind,
            weight=weight,
            loss_scale=self.loss_scale if loss_scale is None else loss_scale,
            metrics=metrics,
        )
        try:
            return (
                yield from self._push_once(
                    gradients, said, hyperparameters, pulls=pulls, dtype=dtype, state=state
                )
            )
        except StaleIncarnation as error:
            if self._on_stale == "raise":
                raise
            self._warn_of(error)
        yield from self.open()
        parameters = yield from self._pull(None)
        now = parameters.version
        return PushResult("dropped_stale", now, now, loss_scale=self.loss_scale)

    def _warn_of(self, error: StaleIncarnation) -> None:
        log.warning(
            "The history of model %r was cut; worker %r goes on from its present parameters: %s",
            self.model,
            self.worker,
            error.message,
        )

    def _push_once(
        self,
        gradients: Mapping[str, Any],
        said: Mapping[str, Any],
        hyperparameters: Hyperparameters | None,
        **options: Any,
    ) -> Flow[PushResult]:
        with self._one_at_a_time():
            yield from self._resolve()
            header = {
                "worker": self.worker,
                "incarnation": self.incarnation,
                **said,
                "hyperparameters": values_of({**self._hyperparameters, **(hyperparameters or {})}),
            }
            result = yield from self._push(gradients, header, **options)
            self._drops.note(result, header["version"])
            if result.loss_scale is not None:
                self.loss_scale = result.loss_scale
        return result

    def push_pull(self, gradients: Mapping[str, Any], **options: Any) -> Flow[Parameters]:
        """Push gradients and return the new parameters; see `push` for the options."""
        result = yield from self.push(gradients, pulls=True, **options)
        if result.parameters is None:  # it had to wait, or was resolved
            return (yield from self.pull())
        self.loss_scale = result.parameters.loss_scale
        return self._note(result.parameters)

    def resolve(self) -> Flow[PushResult | None]:
        """Return what became of the last push; None if it had no effect."""
        yield from self._ensure_open()
        with self._one_at_a_time():
            yield from self._resolve()
        return self._last_result

    def _push(
        self, gradients: Mapping[str, Any], header: Mapping[str, Any], **options: Any
    ) -> Flow[PushResult]:
        """Push, and once more in a new session if the present one was closed in the meantime."""
        try:
            return (yield from self._push_in_this_epoch(gradients, header, **options))
        except SessionExpired:
            yield from self._take_new_epoch()
        return self._last_result or (
            yield from self._push_in_this_epoch(gradients, header, **options)
        )

    def _push_in_this_epoch(
        self, gradients: Mapping[str, Any], header: Mapping[str, Any], **options: Any
    ) -> Flow[PushResult]:
        numbered = {**header, "epoch": self.epoch, "sequence": self.sequence}
        destination = self._pulls.destination()
        call = calls.push(
            self.model, self.layout, gradients, numbered, destination=destination, **options
        )
        self._is_unresolved, self._last_result = True, None
        try:
            result = yield from self._sent(call)
        except PayloadMismatch:
            raise  # an earlier push used the number up
        except StepwellError as error:
            if isinstance(error, MalformedMessage) or error.details.get("status") in REFUSALS:
                self._settle(None)
            raise
        self._settle(result)
        return result

    def _sent(self, call: Call) -> Flow[PushResult]:
        """Send a push until it is settled; a server that restarts forgets pushes that wait."""
        while True:
            result = calls.result_of((yield from repeatedly(call, self._patience)))
            if result.outcome != "waiting":
                return result
            log.warning(
                "Push %d of worker %r waits for other workers of model %r; one that died holds it "
                "up until its lease ends",
                self.sequence,
                self.worker,
                self.model,
            )
            with contextlib.suppress(PushNotFound, UnknownSession):
                return (yield from self._asked())

    def _asked(self) -> Flow[PushResult]:
        """Ask what became of the present push until it is settled."""
        path = model_path(self.model, "workers", self.worker, "pushes", str(self.sequence))
        query = {"epoch": self.epoch, "incarnation": self.incarnation, "wait_s": WAIT_S}
        call = Call("GET", path, query)
        while True:
            result = calls.result_of((yield from repeatedly(call, self._patience)))
            if result.outcome != "waiting":
                return result

    def _resolve(self) -> Flow[None]:
        """Learn whether an unresolved push had its effect."""
        if not self._is_unresolved:
            return
        try:
            self._settle((yield from self._asked()))
        except StaleIncarnation:  # whatever it did is not in the present history
            self._settle(None)
        except (PushNotFound, SessionExpired, UnknownSession):
            yield from self._take_new_epoch()

    def _settle(self, result: PushResult | None) -> None:
        """Note what became of the present push; only one that was admitted uses up its number."""
        self._is_unresolved, self._last_result = False, None
        if result is not None:
            self._last_result = replace(result, parameters=None)  # they belong to the caller
            self.sequence += 1

    def _note(self, parameters: Parameters) -> Parameters:
        if parameters.incarnation == self.incarnation:
            self.version = parameters.version
        return parameters

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if self._is_pushing:
            raise PushInFlight(
                f"Worker {self.worker!r} has another push under way, and makes one at a time. Give "
                "each thread or task a worker of its own"
            )
        self._is_pushing = True
        try:
            yield
        finally:
            self._is_pushing = False


def _do_nothing() -> None:
    """Nobody asked to be told."""
