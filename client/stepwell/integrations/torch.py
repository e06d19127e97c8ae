"""An optimizer of torch whose steps are made by a server: two lines of a training script change.

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer = RemoteOptimizer(model.named_parameters(), model="digits", optimizer=optimizer)

`step` pushes the gradients, pulls the parameters and copies them into the module's own. What
torch's schedulers write into `param_groups` goes along with each push. Needs torch 2.6 or newer:
`pip install "stepwell[torch]"`.
"""

from __future__ import annotations

import os
import re
import socket
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Self

import numpy as np
import torch
from stepwell_core.consistency import Consistency
from stepwell_core.errors import (
    Forbidden,
    InvalidArgument,
    InvalidInput,
    ModelNotFound,
    StaleIncarnation,
    shown,
)

from stepwell.client import Client, Model
from stepwell.copies import copy_arrays
from stepwell.errors import ClientClosed
from stepwell.integrations.joining import not_there_yet
from stepwell.integrations.torch_groups import (
    OF_TORCH_ALONE,
    NamedTensors,
    check_buffers,
    check_layout,
    check_parameters,
    groups_of,
    held,
    taken_apart,
)
from stepwell.integrations.torch_rules import Rules, check_same
from stepwell.results import Parameters, PushResult
from stepwell.retry import Timeout


class RemoteOptimizer(torch.optim.Optimizer):  # type: ignore[misc]  # torch is not read here
    """A `torch.optim.Optimizer` that pushes gradients to a model on a server and pulls parameters.

    When it is made, the model is created if there is none of that name, and the module's parameters
    become those of the server. Not thread-safe; a forked process makes its own. Closed at the end
    of the program, or by `close` or `with`.

    Args:
        parameters: `module.named_parameters()`; or groups, `[{"params": [(name, parameter), ...],
            "lr": 0.1}, ...]`, as torch takes them. Those that need no gradient are left out.
        model: Its name on the server.
        buffers: `module.named_buffers()`: what is no parameter, such as the statistics of a batch
            normalization. Kept and pulled with the parameters; each step sends this module's, and
            of several workers' the last counts. By default they stay here.
        optimizer: One of torch that made no step (SGD, Adagrad, Adam, AdamW), its class, with
            `options`, or whatever `stepwell.Client.create_model` takes. The result is that of
            torch's or of Keras's.
        url: See `stepwell.Client`.
        token: See `stepwell.Client`.
        timeout: See `stepwell.Client`.
        client: A client that is there already, instead of those three.
        worker: Name of this process among the model's workers; default: host and process number.
        consistency: For a model that is not there yet; see `stepwell.Client.create_model`.
        overlap: Pull while the next gradients are computed. They are then computed at parameters
            that lack the last step: one step of staleness, which pushes say.
        missing: What a parameter without a gradient is: "raise", or "skip" to leave it as it is,
            as torch does. A frozen one, that needs no gradient, is left as it is in any case.
        on_stale: When the model's history was cut; see `stepwell.Model.worker`.
        options: Of the class that `optimizer` is: `lr=0.1, momentum=0.9`.

    Raises:
        LayoutMismatch, ShapeMismatch, DtypeMismatch: The model on the server has other parameters.
        ModelDiffers: It has another optimizer.
        InvalidArgument: The optimizer cannot be mapped, or parameters have no names.
        Forbidden: There is no such model, and the token's role may not create it.
        TransportError: There is no server.
    """

    _step_supports_amp_scaling = True  # GradScaler leaves the division to us, and we to the server

    def __init__(
        self,
        parameters: NamedTensors | Iterable[Mapping[str, Any]],
        model: str,
        *,
        optimizer: Any,
        buffers: NamedTensors = (),
        url: str | None = None,
        token: str | None = None,
        timeout: Timeout | None = None,
        client: Client | None = None,
        worker: str | None = None,
        consistency: Consistency | None = None,
        overlap: bool = False,
        missing: Literal["raise", "skip"] = "raise",
        on_stale: Literal["raise", "repull"] = "raise",
        **options: Any,
    ) -> None:
        if missing not in ("raise", "skip"):
            raise InvalidArgument(f"`missing` is raise or skip. Received: {shown(missing)}")
        named, given = taken_apart(parameters)
        self._frozen = {name: p for name, p in named.items() if not p.requires_grad}
        self._named = {name: p for name, p in named.items() if p.requires_grad}
        check_parameters(self._named)
        self._buffers = dict(buffers)
        check_buffers(self._buffers)
        groups, defaults, rules = groups_of(optimizer, given, self._named, options)
        super().__init__(groups, defaults)
        self._rules: Rules = rules
        self._missing = missing
        self._overlap = overlap
        self._client = client or Client(url, token, timeout=timeout)
        owned = self._client if client is None else None
        try:
            self._model = self._opened(model, consistency)
        except BaseException:
            if owned is not None:
                owned.close()
            raise
        self._worker = self._model.worker(worker or _worker_name(), on_stale=on_stale)
        self._threads = ThreadPoolExecutor(1, "stepwell-pull") if overlap else None
        self._pending: Future[Parameters] | None = None
        self._version: int | None = None  # of the parameters that the module has
        self._scaled_by: float | None = None  # what `scale` multiplied the present loss by
        self._incarnation: str | None = None  # of the model's history that the session is in
        self.last_result: PushResult | None = None
        self._close = weakref.finalize(self, _close, self._worker, owned, self._threads)
        self.pull()

    # The model on the server

    def _opened(self, name: str, consistency: Consistency | None) -> Model:
        try:
            model = self._client.model(name)
        except ModelNotFound:
            model = self._created(name, consistency)
        check_layout(model.layout, {**self._named, **held(self._buffers)})
        check_same(self._rules, model.describe(), list(self._buffers))
        return model

    def _created(self, name: str, consistency: Consistency | None) -> Model:
        rules = self._rules
        try:
            return self._client.create_model(
                name,
                self._named,
                optimizer=rules.optimizer,
                consistency=consistency,
                groups=rules.groups,
                state=held(self._buffers),
                exist_ok=True,
            )
        except Forbidden as error:
            raise not_there_yet(name, error) from None

    # Steps

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        metrics: Mapping[str, float] | None = None,
    ) -> Any:
        """Push the gradients, and replace the module's parameters by the server's.

        Args:
            closure: Computes the loss again and returns it, as in torch.
            metrics: Numbers for the model's history, such as the loss.

        Returns:
            What the closure returned.

        Raises:
            InvalidInput: A parameter has no gradient, or has NaN in it; nothing changed.
            InvalidArgument: `param_groups` say what this model cannot do; nothing changed.
            StaleIncarnation: The model was restored or the like; nothing changed. `pull` goes on.
            TransportError: The server was gone before the push, after it, or in its midst. Do not
                step with the same gradients again, which may have had their effect: go on with the
                next batch.
            StepwellError: See `stepwell.Worker.push`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._has_overflown():  # as GradScaler found
            return loss
        gradients = self._gradients()
        values = self._rules.values(self.param_groups)
        pulled = self._pulled()
        self.last_result = self._pushed(
            gradients,
            metrics=metrics,
            hyperparameters=values,
            version=self._version,
            loss_scale=self._loss_scale(),
            state=held(self._buffers),
        )
        self._scaled_by = None
        if self.last_result.outcome == "dropped_stale":  # what was pulled is of the old history
            self.pull()
        elif self._threads is None:
            with self._worker.view() as parameters:
                self._take(parameters, {**self._named, **self._settled_buffers()})
        else:
            if pulled is not None:
                self._take(pulled, self._named)  # its buffers lack this step's batch
            self._pending = self._threads.submit(self._worker.pull)
        return loss

    def _pushed(self, gradients: Mapping[str, torch.Tensor], **options: Any) -> PushResult:
        try:
            return self._worker.push(gradients, **options)
        except StaleIncarnation as error:
            raise StaleIncarnation(
                f"The history of model {self._model.name!r} was cut: it was restored, overwritten "
                "or created anew, or the server lost what it had. Nothing was pushed. Call "
                "optimizer.pull(), which goes on from its present parameters, or make the "
                "optimizer with on_stale='repull'",
                **error.details,
            ) from None

    def pull(self) -> None:
        """Replace the module's parameters, and the buffers, by the server's present ones.

        If the model was restored or overwritten, training goes on in its new history.
        """
        self._pulled()
        with self._worker.view() as parameters:
            self._take(parameters, {**self._named, **self._buffers})
            before, self._incarnation = self._incarnation, parameters.incarnation
        if before not in (None, self._incarnation):
            self._worker.open()

    def _pulled(self) -> Parameters | None:
        if not self._close.alive:
            raise ClientClosed("This RemoteOptimizer is closed; make another one to go on")
        if self._pending is None:
            return None
        try:
            return self._pending.result()
        finally:
            if self._pending.done():  # else somebody pressed Ctrl-C: it goes on, so no push may yet
                self._pending = None

    def _settled_buffers(self) -> dict[str, torch.Tensor]:
        """Return the buffers, if the server's have what the last push said; else ours are newer."""
        result = self.last_result
        return {} if result is None or result.outcome == "buffered" else self._buffers

    def _take(self, parameters: Parameters, targets: Mapping[str, torch.Tensor]) -> None:
        """Copy parameters into tensors of the module, in place."""
        moves = []
        with torch.no_grad():
            for name, parameter in targets.items():
                if parameter.device.type == "cpu" and parameter.dtype not in OF_TORCH_ALONE:
                    moves.append((parameters[name], parameter.detach().numpy()))
                else:  # a copy first: torch warns of arrays that it may not write to
                    parameter.copy_(torch.from_numpy(np.array(parameters[name])))
        copy_arrays(moves)
        for parameter in self._named.values():  # so that autograd sees what NumPy wrote
            torch.autograd.graph.increment_version(parameter)
        self._version = parameters.version

    def _gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradients, as they lie in memory."""
        for name, parameter in self._frozen.items():
            if parameter.grad is not None:
                raise InvalidInput(
                    f"Parameter {name!r} was frozen when the optimizer was made, so the model on "
                    "the server has no such tensor; now it has a gradient. Make another "
                    "RemoteOptimizer, of another model, after unfreezing it",
                    tensor=name,
                )
        gradients = {}
        for name, parameter in self._named.items():
            if parameter.grad is not None:
                gradients[name] = parameter.grad
            elif self._missing == "raise" and parameter.requires_grad:
                raise InvalidInput(
                    f"Parameter {name!r} has no gradient: the loss does not depend on it, or "
                    "backward() was not called. Call it, freeze the parameter "
                    "(requires_grad_(False)), or make the optimizer with missing='skip'",
                    tensor=name,
                )
        return gradients

    # Loss scales

    @property
    def loss_scale(self) -> float | None:
        """What the server wants the loss to be multiplied by; None without a dynamic loss scale."""
        return self._worker.loss_scale

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss times the server's loss scale, which the server divides out again.

        All losses of one step have the scale of the first: their gradients are added up.
        """
        if self._scaled_by is None:
            self._scaled_by = self._worker.loss_scale
        return loss if self._scaled_by is None else loss * self._scaled_by

    def _loss_scale(self) -> float | None:
        # GradScaler.step sets it for the length of the call.
        scale = getattr(self, "grad_scale", None)
        return self._scaled_by if scale is None else float(scale)

    def _has_overflown(self) -> bool:
        found = getattr(self, "found_inf", None)
        return found is not None and bool(found)

    # What torch asks of an optimizer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse, once the model is there: its tensors are decided when it is created.

        Raises:
            InvalidArgument: Always, but from the constructor.
        """
        if hasattr(self, "_worker"):
            raise InvalidArgument(
                "A model's tensors are decided when it is created, so a group cannot be added. "
                "Give all parameters to the constructor, those that are frozen later too"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the groups and where the state is: slots stay on the server.

        `model.checkpoint()` of `stepwell.Client` saves those.
        """
        state = super().state_dict()
        return {**state, "stepwell": {"model": self._model.name, "version": self._version}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over learning rates and the like; the server's state stays as it is.

        Raises:
            InvalidArgument: It is of another model, or of an optimizer that is not remote.
        """
        came_from = state_dict.get("stepwell", {}).get("model")
        if came_from != self._model.name:
            raise InvalidArgument(
                f"This optimizer's state is that of model {self._model.name!r} on the server. "
                f"Received: the state of {shown(came_from)}; `stepwell.Model.import_state` takes "
                "over what was trained elsewhere"
            )
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied or pickled.

        Raises:
            InvalidArgument: Always.
        """
        raise InvalidArgument(
            "A RemoteOptimizer is a session of one process, and is neither copied nor pickled. "
            "Make one in each process, and keep `state_dict()` of it"
        )

    def close(self) -> None:
        """Leave the model; the module keeps the parameters that it has."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _close(worker: Any, client: Client | None, threads: ThreadPoolExecutor | None) -> None:
    if threads is not None:
        threads.shutdown(cancel_futures=True)
    worker.close()
    if client is not None:
        client.close()


def _worker_name() -> str:
    host = re.sub(r"[^a-z0-9._-]", "-", socket.gethostname().lower()).lstrip("._-")[:48]
    return f"{host or 'worker'}-{os.getpid()}"
