"""Optimizers to and from Keras's JSON.

    {"module": "keras.optimizers", "class_name": "Adam", "config": {...}, "registered_name": null}

is what `keras.optimizers.serialize` gives, from Python or from R; `{"class_name": "Adam", "config":
{...}}` is enough. What comes out is the full form, so a configuration survives the way through
Keras and back. A hyperparameter whose value comes with each push is `{"class_name": "PerPush"}`,
ours alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from stepwell_core import schedules
from stepwell_core.errors import InvalidArgument
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import OPTIMIZERS, Optimizer, PerPush
from stepwell_core.optimizers.base import check_argument_names

AnyOptimizer = Optimizer | LossScaleOptimizer

_PER_PUSH = {"class_name": "PerPush"}
_BASE_OPTIONS = {  # Keras once wrote these into a LossScaleOptimizer's config, and still takes the defaults
    "weight_decay": None,
    "clipnorm": None,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "dynamic": True,
}


def serialize(optimizer: AnyOptimizer) -> dict[str, Any]:
    """Return what `keras.optimizers.serialize` returns for the same optimizer; plain JSON
    values.
    """
    return {
        "module": "keras.optimizers",
        "class_name": type(optimizer).__name__,
        "config": {name: _plain(value) for name, value in optimizer.get_config().items()},
        "registered_name": None,
    }


def deserialize(config: object) -> AnyOptimizer:
    """Return the optimizer of a configuration; `config` may come from a stranger.

    Args:
        config: The full or the short form, or just a class name.

    Raises:
        InvalidArgument: The class is not known, or a value is refused by Keras's own conditions.
    """
    class_name, arguments = _split(config)
    if class_name.lower() == "lossscaleoptimizer":
        return _loss_scale_optimizer(arguments)
    cls = OPTIMIZERS.get(class_name.lower())
    if cls is None:
        known = [optimizer.__name__ for optimizer in OPTIMIZERS.values()]
        raise InvalidArgument(
            f"Unknown optimizer {class_name[:80]!r}. Known: {', '.join(known)}, LossScaleOptimizer"
        )
    check_argument_names(cls, arguments)
    floats = {field.name for field in dataclasses.fields(cls) if "float" in str(field.type)}
    floats |= set(cls.per_push_names)
    return cls(
        **{
            name: _hyperparameter(value, is_float=name in floats)
            for name, value in arguments.items()
        }
    )


def _split(config: object) -> tuple[str, dict[str, Any]]:
    if isinstance(config, str):
        return config, {}
    if isinstance(config, Mapping):
        class_name, arguments = config.get("class_name"), config.get("config") or {}
        if isinstance(class_name, str) and isinstance(arguments, Mapping):
            return class_name, dict(arguments)
    raise InvalidArgument(
        'An optimizer is {"class_name": "Adam", "config": {...}}, as keras.optimizers.serialize gives '
        f"it. Received: {repr(config)[:80]}"
    )


def _loss_scale_optimizer(arguments: dict[str, Any]) -> LossScaleOptimizer:
    for name, default in _BASE_OPTIONS.items():
        if arguments.pop(name, default) != default:
            raise InvalidArgument(
                f"LossScaleOptimizer does not support `{name}`. Instead, set `{name}` on the "
                "`inner_optimizer`."
            )
    arguments.pop("learning_rate", None)
    if "inner_optimizer" not in arguments:
        raise InvalidArgument("LossScaleOptimizer needs an `inner_optimizer`. Received: none")
    check_argument_names(LossScaleOptimizer, arguments)
    inner = deserialize(arguments.pop("inner_optimizer"))
    if isinstance(inner, LossScaleOptimizer):
        raise InvalidArgument("A LossScaleOptimizer cannot wrap another LossScaleOptimizer.")
    return LossScaleOptimizer(inner, **arguments)


def _hyperparameter(value: Any, *, is_float: bool) -> Any:
    if isinstance(value, Mapping):
        return PerPush() if value.get("class_name") == "PerPush" else schedules.deserialize(value)
    if is_float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # JSON has one kind of number: R and JavaScript write 1 for 1.0
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, schedules.LearningRateSchedule):
        return value.serialize()
    if isinstance(value, Optimizer):
        return serialize(value)
    if isinstance(value, PerPush):
        return dict(_PER_PUSH)
    if callable(value):
        raise InvalidArgument(
            "A callable has no JSON form; send PerPush and the value at each push."
        )
    return value
