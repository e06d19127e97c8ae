"""The optimizer of `stepwell.integrations.keras`.

On the JAX backend the exchange is an ordered host callback inside the compiled step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from stepwell_core import keras_config
from stepwell_core.consistency import Consistency
from stepwell_core.errors import InvalidArgument, StepwellError
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Array
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.schedules import LearningRateSchedule

from stepwell.client import Client, Model
from stepwell.integrations.joining import created_or_joined
from stepwell.integrations.keras_variables import State, as_held, check_matches, named, of_one_width
from stepwell.optimizers import as_optimizer, callables_of, rule_of
from stepwell.results import Parameters
from stepwell.worker import Worker


@keras.saving.register_keras_serializable(package="stepwell")
class RemoteOptimizer(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A Keras optimizer that pushes gradients to a model of a server, as one worker.

    It creates the model when it is built, or joins those who train it: then the variables begin at
    the server's parameters. One at a time may use a worker's name.

    Args:
        optimizer: A Keras optimizer, its JSON, its name, or ours.
        model: Name on the server.
        worker: Name of this process among the workers.
        url: Of the server; see `stepwell.Client`, which also says where a token comes from.
        client: Of the server, instead of `url`.
        consistency: When pushes become a step; default `stepwell.Async()`.
        state: Variables that are not trained but kept beside the parameters, in checkpoints too:
            `model.non_trainable_variables`, of a model that is built. Those of floating point are;
            they begin at the server's, each push sets the server's, and no pull sets ours. On JAX
            a push has the values that `KeepState` saw last.
        pulls: Whether each step assigns the new parameters. Without, they change when `Pull` or
            `pull` says so.
        name: Of this optimizer in Keras.

    Attributes:
        worker: The session; None before the optimizer is built.
        remote: The model on the server; None before.

    Raises:
        InvalidArgument: An optimizer that is none, or one with a dynamic loss scale; or Keras runs
            on another backend than torch, JAX or NumPy.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        model: str,
        worker: str = "w0",
        url: str | None = None,
        client: Client | None = None,
        consistency: Consistency | None = None,
        state: Sequence[Any] = (),
        pulls: bool = True,
        name: str = "remote_optimizer",
    ) -> None:
        _check_backend(keras.backend.backend())
        rule = as_optimizer(optimizer)
        if isinstance(rule, LossScaleOptimizer):
            raise InvalidArgument(
                "A RemoteOptimizer has no dynamic loss scale. Received: LossScaleOptimizer; give "
                "its inner optimizer: model.compile puts Keras's loss scale around this one, or "
                "keras.optimizers.LossScaleOptimizer(RemoteOptimizer(...)) does"
            )
        super().__init__(learning_rate=_local_rate(rule), name=name)
        self._rule = rule
        self.worker: Worker | None = None
        self.remote: Model | None = None
        self._model_name, self._worker_name, self._url = model, worker, url
        self._client, self._owns_client = client, client is None
        self._consistency = consistency
        self._pulls = pulls
        self._names: list[str] = []
        self._state = State(state)
        self._kept: dict[str, Array] | None = None  # its values, for the next push
        self._error: StepwellError | None = None
        self._last: Parameters | None = None

    # Joining

    def build(self, variables: Sequence[Any]) -> None:
        """Create the model on the server, or join it, and assign its parameters.

        Args:
            variables: Those that are trained.

        Raises:
            InvalidArgument: A variable has a constraint, or two have one path.
            LayoutMismatch: The model on the server has other tensors.
            ModelDiffers: It has another optimizer.
            StepwellError: See `Client.create_model`.
        """
        if self.built:
            return
        if not self._names:
            self._join(named(variables))
        super().build(list(variables))
        if self._last is not None:
            self._assign(self._last)

    def _join(self, trained: Mapping[str, Any]) -> None:
        self._state.name(trained)
        client = self._client or Client(self._url)
        try:
            self.remote = self._joined(client, trained)
            values = callables_of(self._rule)
            self.worker = self.remote.worker(self._worker_name, hyperparameters=values).open()
            self._last = self.worker.pull()
            rate = rule_of(self.remote.optimizer()).learning_rate  # the present one
        except StepwellError:
            self.worker = self.remote = None
            if self._owns_client:
                client.close()
            raise
        self._client, self._names = client, list(trained)
        self._state.assign(self._last)
        if isinstance(rate, float) and isinstance(self._rule.learning_rate, float):
            keras.optimizers.Optimizer.learning_rate.fset(self, rate)

    def _joined(self, client: Client, trained: Mapping[str, Any]) -> Model:
        if self._model_name in client.models():
            check_matches(client.model(self._model_name), {**trained, **self._state.named})
        create = partial(
            client.create_model,
            self._model_name,
            {name: as_held(variable) for name, variable in trained.items()},
            state=self._state.values(),
            optimizer=self._rule,
            consistency=self._consistency,
            exist_ok=True,
        )
        return created_or_joined(client, self._model_name, self._rule, create)

    def pull(self) -> None:
        """Pull, and assign the parameters to the variables. Not inside a compiled function.

        An optimizer that came with a model from a file joins by this.
        """
        if self.worker is None and self.built:
            self._join(dict(zip(self._names, self._trainable_variables, strict=True)))
        self._assign(self._session().pull(cached=self._last))

    def close(self) -> None:
        """Close the session, and the client if this optimizer made it. Fits no more."""
        if self.worker is not None:
            self.worker.close()
        if self._owns_client and self._client is not None:
            self._client.close()

    def _session(self) -> Worker:
        if self.worker is None and self.built:
            raise InvalidArgument(
                "A RemoteOptimizer from a file joins nobody by itself, so that whoever looks at "
                "its model takes no worker's place. Received a step before: call "
                "model.optimizer.pull(), which takes over the server's parameters, or compile the "
                "model with another"
            )
        if self.worker is None:
            raise InvalidArgument(
                "A RemoteOptimizer joins its model when it is built. Received a call before: call "
                "optimizer.build(model.trainable_variables), or fit"
            )
        return self.worker

    # The step

    def _backend_apply_gradients(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """Make one step; Keras calls this behind its own checks, without empty gradients."""
        self._session()
        names = [self._names[self._get_variable_index(variable)] for variable in variables]
        values = of_one_width(grads, beside_state=bool(self._state.named))
        gradients = dict(zip(names, values, strict=True))
        if keras.backend.backend() == "jax" and _is_traced(grads):
            self._exchange_traced(gradients)
        else:
            self._exchange(gradients)
            if self._pulls:
                assert self._last is not None
                self._assign(self._last)

    def _exchange(self, gradients: Mapping[str, Any]) -> None:
        if self._state.named and keras.backend.backend() != "jax":
            self.keep_state()
        state, self._kept = self._kept, None
        if self._pulls:
            self._last = self._session().push_pull(gradients, state=state)
        else:
            self._session().push(gradients, state=state)

    def keep_state(self) -> None:
        """Send the present values of `state` with the next push. Not inside a compiled function."""
        self._kept = self._state.values()

    def _exchange_traced(self, gradients: Mapping[str, Any]) -> None:
        """Put the exchange into the compiled step, in the order of the program."""
        import jax
        from jax.experimental import io_callback

        targets = self._trainable_variables if self._pulls else []
        shapes = [jax.ShapeDtypeStruct(target.shape, target.dtype) for target in targets]

        def exchanged(arrays: Mapping[str, Any]) -> list[Array]:
            try:
                self._exchange(arrays)
            except StepwellError as error:
                self._error = error  # JAX makes an error of its own of it; see finalize
                raise
            return [
                np.asarray(array).astype(shape.dtype, copy=False)
                for array, shape in zip(self._values(), shapes, strict=self._pulls)
            ]

        values = io_callback(exchanged, shapes, dict(gradients), ordered=True)
        for target, value in zip(targets, values, strict=True):
            target.assign(value)

    def _values(self) -> list[Array]:
        """Return what was pulled last, in the variables' order."""
        return [] if self._last is None else [self._last[name] for name in self._names]

    def _assign(self, parameters: Parameters) -> None:
        self._last = parameters
        for variable, value in zip(self._trainable_variables, self._values(), strict=True):
            variable.assign(value)

    # What Keras asks of an optimizer

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """End a `fit`: raise what ended it, or assign the moving average if there is one.

        The average goes into the variables alone; on the server training goes on from the
        parameters. `Model.finalize` writes it there.

        Raises:
            StepwellError: What the exchange inside a compiled step of JAX raised; the variables are
                those of the last exchange then.
        """
        if self._error is not None:
            error, self._error = self._error, None
            for variable, value in zip(self._trainable_variables, self._values(), strict=False):
                variable.assign(value)
            raise error
        if self._rule.use_ema and self.remote is not None:
            average = self.remote.pull(slot="average")
            for name, variable in zip(self._names, self._trainable_variables, strict=True):
                variable.assign(average[name])

    @property
    def learning_rate(self) -> Any:
        """The learning rate as Keras shows it. Setting it sets the server's, from the next step.

        Before the optimizer is built it sets that with which the model will be created.
        """
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        keras.optimizers.Optimizer.learning_rate.fset(self, value)
        rate = float(np.asarray(value))
        if self.remote is not None:
            self.remote.set_hyperparameters(learning_rate=rate)
        else:
            self._rule = self._rule.with_values({"learning_rate": rate})

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain values; a token is not among them."""
        return {
            "optimizer": keras_config.serialize(self._rule),
            "model": self._model_name,
            "worker": self._worker_name,
            "url": self._url,
            "pulls": self._pulls,
            "name": self.name,
            "tensors": list(self._names),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> RemoteOptimizer:
        """Return an optimizer of these arguments; of one that had joined, see `pull`.

        Its tensors keep their names, since Keras gives the variables of a loaded model others.
        """
        arguments = dict(config)
        names = arguments.pop("tensors", [])
        made: RemoteOptimizer = super().from_config(arguments, custom_objects)
        made._names = list(names)
        return made


def _local_rate(rule: AnyOptimizer) -> Any:
    """Return what Keras shows as the learning rate: the number, or its own schedule."""
    rate = rule.learning_rate  # type: ignore[union-attr]
    if isinstance(rate, LearningRateSchedule):
        return keras.optimizers.schedules.deserialize(rate.serialize())
    return float(rate) if isinstance(rate, int | float) else 0.0


def _check_backend(name: str) -> None:
    """Refuse a backend whose compiled steps cannot call a server; TensorFlow is Keras's default."""
    if name not in ("jax", "numpy", "torch"):
        raise InvalidArgument(
            f"A RemoteOptimizer trains on Keras's backends torch and JAX. Received: {name!r}; set "
            "KERAS_BACKEND=torch or KERAS_BACKEND=jax in the environment, before Keras is imported"
        )


def _is_traced(values: Sequence[Any]) -> bool:
    import jax

    return any(isinstance(value, jax.core.Tracer) for value in values)
