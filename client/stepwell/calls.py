"""Every request as data: what to send, and how to read the answer. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from stepwell_core import keras_config, wire
from stepwell_core.consistency import Async, Consistency
from stepwell_core.errors import DtypeMismatch, InvalidArgument, LayoutMismatch, ShapeMismatch
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Arenas, Layout, Tensor, byte_views
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import Optimizer, PerPush
from stepwell_core.schedules import LearningRateSchedule

from stepwell.results import Parameters, PushResult, as_array

Array = npt.NDArray[Any]
Hyperparameters = Mapping[str, float | Callable[[], float]]


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        method: Of HTTP.
        path: Below the server's URL.
        query: Names and values; a list repeats its name.
        body: The parts of a msgpack message; views are read while the call is under way.
        json: A JSON body instead.
        layout: Of the payload that may come back.
        can_repeat: Whether it does no harm if the server gets it twice.
        timeout_s: For the whole exchange, instead of the client's timeouts.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: tuple[wire.Part, ...] = ()
    json: Mapping[str, Any] | None = None
    layout: Layout | None = None
    can_repeat: bool = True
    timeout_s: float | None = None


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: Of HTTP, below 400.
        fields: The header of the message, or the JSON object.
        arenas: The payload, in arenas of `layout` that nobody else uses.
        layout: Of `arenas`.
    """

    status: int
    fields: dict[str, Any]
    arenas: Arenas | None = None
    layout: Layout | None = None


def expected_payload(call: Call, fields: Mapping[str, Any]) -> Layout | None:
    """Return the layout of the payload behind a header, or None if there is none.

    Raises:
        LayoutMismatch: The payload is of another layout than the call expects.
    """
    if "layout" not in fields or call.layout is None:
        return None
    names = fields.get("tensors")
    if fields["layout"] != call.layout.hash:
        raise LayoutMismatch(
            "The model on the server has another layout now: it was deleted and created anew. Open it again"
        )
    return call.layout if names is None else call.layout.select(names)


def model_path(name: str, *rest: str) -> str:
    """Return the path of a model or of something below it."""
    return "/".join(("/v1/models", name, *rest))


def create_model(
    name: str,
    parameters: Mapping[str, Any],
    optimizer: AnyOptimizer,
    consistency: Consistency | None,
    on_nonfinite: str,
    *,
    exist_ok: bool,
) -> Call:
    """Create a model with initial values.

    Raises:
        DtypeMismatch: A parameter is neither float32 nor float64.
    """
    arrays = {key: as_array(value) for key, value in parameters.items()}
    layout = Layout.of(arrays)
    rule = optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer
    header = {
        "protocol": wire.PROTOCOL,
        "name": name,
        "tensors": layout.to_json(),
        "optimizer": keras_config.serialize(without_callables(optimizer)),
        "exclude_from_weight_decay": list(rule.excluded_from_weight_decay(layout.names)),
        "consistency": (consistency or Async()).to_json(),
        "on_nonfinite": on_nonfinite,
        "exist_ok": exist_ok,
    }
    body = wire.encode(header, in_travel_order(layout, arrays))
    return Call("POST", "/v1/models", body=tuple(body), can_repeat=exist_ok)


def pull(model: str, layout: Layout, names: Iterable[str] | None, slot: str | None) -> Call:
    """Pull parameters or a slot."""
    query: dict[str, Any] = {}
    if names is not None:
        query["names"] = list(names)
    if slot is not None:
        query["slot"] = slot
    return Call("GET", model_path(model, "parameters"), query, layout=layout)


def parameters_of(answer: Answer) -> Parameters:
    """Return the parameters in an answer."""
    assert answer.arenas is not None, "a pull is answered with a payload"
    assert answer.layout is not None, "a payload has a layout"
    fields = answer.fields
    return Parameters(
        answer.layout.views(answer.arenas),
        fields["version"],
        fields["incarnation"],
        fields.get("loss_scale"),
    )


def push(
    model: str,
    layout: Layout,
    gradients: Mapping[str, Any],
    header: Mapping[str, Any],
    *,
    pulls: bool,
) -> Call:
    """Push gradients; those that are None are left out.

    Args:
        model: Its name.
        layout: Of the model.
        gradients: By name; read until the call is answered, not copied.
        header: Who pushes, and what it says beside the gradients.
        pulls: Whether the answer is to have the new parameters.

    Raises:
        UnknownTensor, ShapeMismatch, DtypeMismatch: A gradient does not fit its parameter.
    """
    arrays = {name: as_array(value) for name, value in gradients.items() if value is not None}
    selection = layout.select(arrays)
    for tensor in selection:
        _check_shape(arrays[tensor.name], tensor)
    fields = {
        "protocol": wire.PROTOCOL,
        **header,
        "layout": layout.hash,
        "dtype": _common_dtype(arrays, selection),
    }
    if selection is not layout:
        fields["tensors"] = list(selection.names)
    body = wire.encode(fields, in_travel_order(selection, arrays))
    query = {"pull": "true"} if pulls else {}
    return Call(
        "POST", model_path(model, "gradients"), query, tuple(body), layout=layout if pulls else None
    )


def result_of(answer: Answer) -> PushResult:
    """Return what became of a push."""
    if answer.arenas is None:
        return PushResult(**answer.fields)
    return PushResult(**answer.fields["result"], parameters=parameters_of(answer))


def in_travel_order(layout: Layout, arrays: Mapping[str, Array]) -> list[memoryview]:
    """Return the bytes of each tensor in the order in which they travel; no copy."""
    return [
        view
        for segment in layout.segments.values()
        for view in byte_views({segment.tensor.dtype: arrays[segment.tensor.name].reshape(-1)})
    ]


def _check_shape(array: Array, tensor: Tensor) -> None:
    if tuple(array.shape) != tensor.shape:
        raise ShapeMismatch(
            f"The gradient of {tensor.name!r} must have its parameter's shape {tensor.shape}. Received: "
            f"{tuple(array.shape)}",
            tensor=tensor.name,
            expected=list(tensor.shape),
            received=list(array.shape),
        )


def _common_dtype(arrays: Mapping[str, Array], selection: Layout) -> str:
    """Return the payload's dtype: each parameter's own, or one for all."""
    received = {tensor.name: arrays[tensor.name].dtype.name for tensor in selection}
    if all(received[tensor.name] == tensor.dtype for tensor in selection):
        return "native"
    found = set(received.values())
    if len(found) == 1 and found <= {"float16", "float32", "float64"}:
        return found.pop()
    wrong = next(tensor for tensor in selection if received[tensor.name] != tensor.dtype)
    raise DtypeMismatch(
        f"Gradients have their parameters' dtypes, or all of them one of float16, float32, float64. "
        f"Received: {received[wrong.name]} for {wrong.name!r}, which is {wrong.dtype}",
        tensor=wrong.name,
        expected=wrong.dtype,
        received=received[wrong.name],
    )


def as_optimizer(value: Any) -> AnyOptimizer:
    """Return an optimizer from ours, Keras's JSON, a class name, or a live Keras optimizer.

    Raises:
        InvalidArgument: It is none of these, or Keras's has something that no JSON can say.
    """
    if isinstance(value, Optimizer | LossScaleOptimizer):
        return value
    if isinstance(value, str | Mapping):
        return keras_config.deserialize(value)
    if not hasattr(value, "get_config") or not hasattr(value, "finalize_variable_values"):
        raise InvalidArgument(
            "`optimizer` is a Stepwell optimizer, a Keras optimizer, or a configuration as "
            f"keras.optimizers.serialize gives it. Received: {type(value).__name__}"
        )
    if getattr(value, "_exclude_from_weight_decay", None):
        raise InvalidArgument(
            "This Keras optimizer excludes variables from weight decay by `var_list`; name them with "
            "`var_names` instead"
        )
    optimizer = keras_config.deserialize(
        {"class_name": type(value).__name__, "config": _plain_config(value)}
    )
    pattern = getattr(value, "_exclude_from_weight_decay_pattern", None)
    return optimizer.exclude_from_weight_decay([pattern.pattern]) if pattern else optimizer


def _plain_config(optimizer: Any) -> dict[str, Any]:
    try:
        config: dict[str, Any] = optimizer.get_config()
    except Exception as error:
        raise InvalidArgument(
            f"The configuration of this Keras optimizer cannot be read ({type(error).__name__}). Give a "
            "learning rate that is a callable to a Stepwell optimizer: stepwell.Adam(learning_rate=...)"
        ) from error
    return config


def callables_of(optimizer: AnyOptimizer) -> dict[str, Callable[[], float]]:
    """Return the hyperparameters that are called once a push, by name."""
    rule = optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer
    return {
        name: value
        for name in rule.per_push_names
        if callable(value := getattr(rule, name))
        and not isinstance(value, LearningRateSchedule | PerPush)
    }


def without_callables(optimizer: AnyOptimizer) -> AnyOptimizer:
    """Return the optimizer as the server may know it: callables give way to `PerPush`."""
    names = callables_of(optimizer)
    if not names:
        return optimizer
    if isinstance(optimizer, LossScaleOptimizer):
        inner = without_callables(optimizer.inner_optimizer)
        assert isinstance(inner, Optimizer)
        return LossScaleOptimizer(
            inner, optimizer.initial_scale, optimizer.dynamic_growth_steps, optimizer.name
        )
    return optimizer.with_values(dict.fromkeys(names, PerPush()))


def values_of(hyperparameters: Hyperparameters) -> dict[str, float]:
    """Return plain numbers, calling what is callable."""
    return {
        name: float(np.float64(value() if callable(value) else value))
        for name, value in hyperparameters.items()
    }


def overwrite(layout: Layout, parameters: Mapping[str, Any]) -> tuple[wire.Part, ...]:
    """Return the body that replaces all parameters.

    Raises:
        LayoutMismatch, ShapeMismatch, DtypeMismatch: They are not of the model's layout.
    """
    arrays = {name: as_array(value) for name, value in parameters.items()}
    layout.check(arrays)
    header = {"protocol": wire.PROTOCOL, "layout": layout.hash}
    return tuple(wire.encode(header, in_travel_order(layout, arrays)))
