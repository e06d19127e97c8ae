"""A worker's session: who it is, which push comes next, and what it does when an answer is lost.

Pure bookkeeping and flows; `client.py` and `async_client.py` drive them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepwell_core.errors import PushNotFound, StepwellError, Unavailable, UnknownSession
from stepwell_core.layout import Layout

from stepwell import calls
from stepwell.calls import Call, Hyperparameters, model_path
from stepwell.errors import TransportError
from stepwell.results import Parameters, PushResult
from stepwell.retry import Flow, repeatedly

WAIT_S = 20.0
"""How long one question for a push that waits may take; shorter than the read timeout."""

CLOSE_S = 1.0
"""How long closing may take; a server that is gone must not hold up a program that ends."""


class Session:
    """One worker of one model. Not thread-safe: one push at a time is in flight.

    Args:
        model: Name of the model.
        layout: Of the model.
        worker: Name of the worker; at any time one process may use it.
        hyperparameters: Values or callables for those that come with each push.
        retry_s: How long a call is repeated before its error is raised.
    """

    def __init__(
        self,
        model: str,
        layout: Layout,
        worker: str,
        hyperparameters: Hyperparameters,
        retry_s: float,
    ) -> None:
        self.model = model
        self.layout = layout
        self.worker = worker
        self.epoch = -1
        self.incarnation = ""
        self.sequence = 0
        self.version: int | None = None
        self.loss_scale: float | None = None
        self._hyperparameters = dict(hyperparameters)
        self._retry_s = retry_s
        self._is_unresolved = False
        self._pid = os.getpid()

    def open(self) -> Flow[None]:
        """Open the session, or a new one in its place; an older one of this worker is fenced."""
        call = Call("POST", model_path(self.model, "workers"), json={"worker": self.worker})
        answer = yield from repeatedly(call, self._retry_s)
        self.epoch = answer.fields["epoch"]
        self.incarnation = answer.fields["incarnation"]
        self.loss_scale = answer.fields["loss_scale"]
        self.sequence, self.version = 0, None
        self._is_unresolved = False
        self._pid = os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether this process opened the session and did not close it yet."""
        return self.epoch >= 0 and os.getpid() == self._pid

    def close(self) -> Flow[None]:
        """Close the session; one try."""
        path = model_path(self.model, "workers", self.worker)
        yield Call("DELETE", path, {"epoch": self.epoch}, timeout_s=CLOSE_S)

    def pull(self) -> Flow[Parameters]:
        """Pull all parameters; the next gradient counts as computed at them."""
        call = calls.pull(self.model, self.layout, None, None)
        answer = yield from repeatedly(call, self._retry_s)
        return self._note(calls.parameters_of(answer))

    def push(
        self,
        gradients: Mapping[str, Any],
        *,
        pulls: bool,
        weight: float,
        metrics: Mapping[str, float] | None,
        hyperparameters: Hyperparameters | None,
    ) -> Flow[PushResult]:
        """Push gradients and wait for what becomes of them."""
        self._check_process()
        if self._is_unresolved:
            yield from self._resolve()
        values = calls.values_of({**self._hyperparameters, **(hyperparameters or {})})
        header = {
            "worker": self.worker,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "incarnation": self.incarnation,
            "version": self.version,
            "weight": float(weight),
            "loss_scale": self.loss_scale,
            "hyperparameters": values,
            "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        }
        call = calls.push(self.model, self.layout, gradients, header, pulls=pulls)
        self._is_unresolved = True
        try:
            result = yield from self._settled(call)
        except (TransportError, Unavailable):
            raise
        except StepwellError:
            self._is_unresolved = False  # the server refused it, so the sequence number is free
            raise
        self._is_unresolved = False
        self.sequence += 1
        if result.loss_scale is not None:
            self.loss_scale = result.loss_scale
        if pulls:
            parameters = result.parameters or (yield from self.pull())
            result = replace(result, parameters=self._note(parameters))
        return result

    def _settled(self, call: Call) -> Flow[PushResult]:
        answer = yield from repeatedly(call, self._retry_s)
        result = calls.result_of(answer)
        while result.outcome == "waiting":
            result = yield from self._ask()
        return result

    def _ask(self) -> Flow[PushResult]:
        """Ask what became of the present push."""
        path = model_path(self.model, "workers", self.worker, "pushes", str(self.sequence))
        call = Call("GET", path, {"epoch": self.epoch, "wait_s": WAIT_S})
        return calls.result_of((yield from repeatedly(call, self._retry_s)))

    def _resolve(self) -> Flow[None]:
        """Learn whether a push whose answer was lost had its effect, before the next one is
        made.
        """
        try:
            result = yield from self._ask()
            while result.outcome == "waiting":
                result = yield from self._ask()
        except PushNotFound:
            self._is_unresolved = False
            return
        self._is_unresolved = False
        self.sequence += 1

    def _note(self, parameters: Parameters) -> Parameters:
        if parameters.incarnation == self.incarnation:
            self.version = parameters.version
        self.loss_scale = parameters.loss_scale
        return parameters

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UnknownSession(
                f"The session of worker {self.worker!r} belongs to the process that opened it; in a forked "
                "process open one with a name of its own: model.worker(...)"
            )
