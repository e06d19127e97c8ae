"""Requests that create a model or change how it is trained; see `calls.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stepwell_core import keras_config, wire
from stepwell_core.consistency import MODES, Async, Consistency
from stepwell_core.errors import InvalidArgument, shown
from stepwell_core.groups import ParameterGroup, check_groups
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Layout
from stepwell_core.schedules import LearningRateSchedule

from stepwell.calls import Call, model_path
from stepwell.optimizers import rule_of, without_callables
from stepwell.tensors import arrays_of, in_travel_order


def create_model(
    name: str,
    parameters: Mapping[str, Any],
    optimizer: AnyOptimizer,
    consistency: Consistency | None,
    on_nonfinite: str,
    groups: Sequence[ParameterGroup] = (),
    state: Mapping[str, Any] | None = None,
    *,
    exist_ok: bool,
) -> Call:
    """Create a model with initial values.

    Raises:
        DtypeMismatch: A parameter is neither float32 nor float64.
        InvalidArgument: Something is not of the type that it must be.
    """
    if consistency is not None:
        _check_mode(consistency)
    arrays, values = arrays_of(parameters), arrays_of(state or {})
    if both := arrays.keys() & values.keys():
        raise InvalidArgument(
            f"A tensor is a parameter or state. Received as both: {shown(min(both))}"
        )
    layout = Layout.of({**arrays, **values})  # state behind, so that parameters are neighbours
    header: dict[str, Any] = {
        "protocol": wire.PROTOCOL,
        "name": name,
        "tensors": layout.to_json(),
        "optimizer": keras_config.serialize(without_callables(optimizer)),
        "exclude_from_weight_decay": list(
            rule_of(optimizer).excluded_from_weight_decay(layout.names)
        ),
        "consistency": (consistency or Async()).to_json(),
        "on_nonfinite": on_nonfinite,
        "exist_ok": bool(exist_ok),
    }
    if groups:  # an older server knows no such field
        check_groups(groups, arrays, rule_of(optimizer))
        header["groups"] = [group.to_json() for group in groups]
    if values:
        header["state"] = list(values)
    payload = in_travel_order(layout, {**arrays, **values})
    return Call("POST", "/v1/models", header=header, payload=payload, can_repeat=exist_ok)


def overwrite(model: str, layout: Layout, parameters: Mapping[str, Any]) -> Call:
    """Replace all parameters.

    Raises:
        LayoutMismatch, ShapeMismatch, DtypeMismatch: They are not of the model's layout.
    """
    arrays = arrays_of(parameters)
    layout.check(arrays)
    header = {"protocol": wire.PROTOCOL, "layout": layout.hash}
    payload = in_travel_order(layout, arrays)
    return Call(
        "PUT",
        model_path(model, "parameters"),
        header=header,
        payload=payload,
        can_repeat=False,  # twice would undo what was pushed in between
    )


def set_consistency(name: str, mode: Consistency) -> Call:
    """Let pushes become steps by another mode.

    Raises:
        InvalidArgument: It is no mode.
    """
    _check_mode(mode)
    return Call("PATCH", model_path(name, "consistency"), json=mode.to_json())


def _check_mode(mode: Any) -> None:
    if not isinstance(mode, Consistency):
        *names, last = sorted(kind.__name__ for kind in MODES.values())
        raise InvalidArgument(
            f"A mode of consistency is stepwell.{', '.join(names)} or {last}, such as "
            f"stepwell.Sync(workers=4). Received: {shown(mode)}"
        )


def set_hyperparameters(model: str, values: Mapping[str, Any]) -> Call:
    """Change hyperparameters from the next step on.

    Raises:
        InvalidArgument: A value has no JSON form.
    """
    plain = {name: _plain_hyperparameter(name, value) for name, value in values.items()}
    return Call("PATCH", model_path(model, "optimizer"), json=plain)


def _plain_hyperparameter(name: str, value: Any) -> Any:
    if isinstance(value, LearningRateSchedule):
        return value.serialize()
    if callable(value):
        raise InvalidArgument(
            f"`{name}` can be a callable if the model was created with one; then give it to "
            "model.worker(..., hyperparameters=...). Received: a callable"
        )
    plain = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(plain, float) and not math.isfinite(plain):
        raise InvalidArgument(f"`{name}` is a finite number. Received: {plain}")
    return plain
