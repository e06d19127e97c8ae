"""Variables of Keras as tensors of a server: their names, and what of them can be one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from stepwell_core.errors import DtypeMismatch, InvalidArgument, LayoutMismatch
from stepwell_core.layout import Array

from stepwell.client import Model

_HALF = ("float16", "bfloat16")  # such variables are held in float32 on the server


def named(variables: Sequence[Any]) -> dict[str, Any]:
    """Return variables that are to be trained by their paths.

    Raises:
        InvalidArgument: One cannot be trained by a server, or two have one path.
    """
    found: dict[str, Any] = {}
    for variable in variables:
        if variable.path in found:
            raise InvalidArgument(
                f"Each variable has a path of its own. Received twice: {variable.path!r}; give the "
                "layers names of their own",
                tensor=variable.path,
            )
        if variable.constraint is not None:
            raise InvalidArgument(
                f"A server applies no constraints. Received: {type(variable.constraint).__name__} "
                f"on {variable.path!r}; leave it out",
                tensor=variable.path,
            )
        if getattr(variable, "overwrite_with_gradient", False):
            raise InvalidArgument(
                f"A server trains no scales of float8. Received: {variable.path!r}; train in "
                "float32 or bfloat16",
                tensor=variable.path,
            )
        found[variable.path] = variable
    return found


def check_matches(model: Model, named: Mapping[str, Any]) -> None:
    """Raise unless a model on the server has these variables; a sentence for people of Keras."""
    theirs = {tensor.name: tensor.shape for tensor in model.layout}
    ours = {name: tuple(variable.shape) for name, variable in named.items()}
    for tensor in model.layout:
        received = "" if tensor.name not in ours else held_dtype(named[tensor.name])
        if ours.get(tensor.name) == tensor.shape and received != tensor.dtype:
            raise DtypeMismatch(
                f"{tensor.name!r} is {tensor.dtype} in the model {model.name!r} on the server. "
                f"Received {received}; give the layer dtype={tensor.dtype!r}, or take another "
                "model's name",
                tensor=tensor.name,
                expected=tensor.dtype,
                received=received,
            )
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            raise LayoutMismatch(
                f"The model {model.name!r} on the server was created from other variables: "
                f"{name!r} has shape {theirs.get(name, 'none')} there and {ours.get(name, 'none')} "
                "here. Keras counts layers without a name in each process: name them, call "
                "keras.utils.clear_session() before, or take another model's name. Statistics are "
                "given as state=model.non_trainable_variables. A model from a file has other "
                "names: build it in code, and load_weights()",
                tensor=name,
            )


def as_held(variable: Any) -> Array:
    """Return a copy of a variable's value, in the dtype that a server holds it in."""
    value: Array = keras.ops.convert_to_numpy(variable.value)
    return value.astype(np.float32) if _is_half(variable) else value


def held_dtype(variable: Any) -> str:
    """Return the dtype that a server holds a variable in."""
    return "float32" if _is_half(variable) else str(keras.backend.standardize_dtype(variable.dtype))


def _is_half(value: Any) -> bool:
    return keras.backend.standardize_dtype(value.dtype) in _HALF


def of_one_width(gradients: Sequence[Any], *, beside_state: bool) -> list[Any]:
    """Return gradients that one push can have: of half width if all are, and no state is there."""
    if not any(map(_is_half, gradients)):
        return list(gradients)
    if all(map(_is_half, gradients)) and not beside_state:
        return list(gradients)
    return [keras.ops.cast(g, "float32") if _is_half(g) else g for g in gradients]


class State:
    """Variables that are kept beside the trained ones: floating-point ones, as statistics are.

    Others are counters and seeds, which are this process's own. (An object of its own, since an
    optimizer of Keras takes each variable in its attributes for one of its slots.)

    Args:
        variables: As `model.non_trainable_variables` has them.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._given = list(variables)
        self.named: dict[str, Any] = {}

    def name(self, trained: Mapping[str, Any]) -> None:
        """Find the variables' paths, which they may have only when their model is built.

        Args:
            trained: Those that are trained, by path.

        Raises:
            InvalidArgument: One is among the trained ones, or two have one path.
        """
        named: dict[str, Any] = {}
        for variable in self._given:
            if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(variable.dtype)):
                continue
            if variable.path in named or variable.path in trained:
                raise InvalidArgument(
                    "Each variable has a path of its own, and is trained or is state. Received "
                    f"twice: {variable.path!r}; `state` is model.non_trainable_variables",
                    tensor=variable.path,
                )
            named[variable.path] = variable
        self.named = named

    def values(self) -> dict[str, Array]:
        """Return the values by path, as a server holds them."""
        return {name: as_held(variable) for name, variable in self.named.items()}

    def assign(self, values: Mapping[str, Any]) -> None:
        """Assign values by path."""
        for name, variable in self.named.items():
            variable.assign(values[name])
