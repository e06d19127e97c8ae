"""Optimizers to and from Keras's JSON.

    {"module": "keras.optimizers", "class_name": "Adam", "config": {...}, "registered_name": null}

is what `keras.optimizers.serialize` gives, from Python or from R; `{"class_name": "Adam", "config":
{...}}` is enough. What comes out is the full form, so a configuration survives the way through
Keras and back. A hyperparameter whose value comes with each push is `{"class_name": "PerPush"}`,
ours alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell_core import schedules
from stepwell_core.errors import InvalidArgument, shown
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import OPTIMIZERS, Optimizer, PerPush
from stepwell_core.optimizers.base import check_argument_names

AnyOptimizer = Optimizer | LossScaleOptimizer

_PER_PUSH = {"class_name": "PerPush"}
_INSTEAD = {
    "adamw": (
        ". Adam(weight_decay=0.004) is Keras's AdamW: its decay is decoupled. "
        "TorchAdam(weight_decay=0.01, decoupled_weight_decay=True) is torch's"
    )
}
"""What to take for a name that is no rule of its own, with its owner's defaults."""
# Keras once wrote these into a LossScaleOptimizer's config, and still takes the defaults.
_BASE_OPTIONS = {
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
    """Return what `keras.optimizers.serialize` returns for the same optimizer: plain values.

    Raises:
        InvalidArgument: A hyperparameter is a callable, which has no JSON form.
    """
    return {
        "module": optimizer.module,
        "class_name": type(optimizer).__name__,
        "config": {name: plain(value) for name, value in optimizer.get_config().items()},
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
    if _is_loss_scale_optimizer(class_name):
        return _loss_scale_optimizer(arguments)
    cls = OPTIMIZERS.get(class_name.lower())
    if cls is None:
        known = [optimizer.__name__ for optimizer in OPTIMIZERS.values()]
        raise InvalidArgument(
            f"Unknown optimizer {shown(class_name)}. Known: {', '.join(known)}, LossScaleOptimizer"
            f"{_INSTEAD.get(class_name.lower(), '')}"
        )
    return cls(**hyperparameters(cls, arguments))


def hyperparameters(cls: type[Optimizer], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of an optimizer from their JSON form; their values are not checked yet.

    Raises:
        InvalidArgument: A name is not an argument, or a schedule is not one.
    """
    check_argument_names(cls, values)
    return cls.with_floats({name: _hyperparameter(name, value) for name, value in values.items()})


def _split(config: object) -> tuple[str, dict[str, Any]]:
    if isinstance(config, str):
        return config, {}
    if isinstance(config, Mapping):
        class_name, arguments = config.get("class_name"), config.get("config")
        if isinstance(class_name, str) and isinstance(arguments, Mapping | None):
            return class_name, dict(arguments or {})
    raise InvalidArgument(
        'An optimizer is {"class_name": "Adam", "config": {...}}, as keras.optimizers.serialize '
        f"gives it. Received: {shown(config)}"
    )


def _loss_scale_optimizer(arguments: dict[str, Any]) -> LossScaleOptimizer:
    for name, default in _BASE_OPTIONS.items():
        if arguments.pop(name, default) != default:
            raise InvalidArgument(
                f"LossScaleOptimizer does not support `{name}`. Instead, set `{name}` on the "
                "`inner_optimizer`."
            )
    if "inner_optimizer" not in arguments:
        raise InvalidArgument("LossScaleOptimizer needs an `inner_optimizer`. Received: none")
    check_argument_names(LossScaleOptimizer, arguments)
    config = arguments.pop("inner_optimizer")
    if _is_loss_scale_optimizer(_split(config)[0]):  # before it is read: it may be a deep nest
        raise InvalidArgument("A LossScaleOptimizer cannot wrap another LossScaleOptimizer.")
    inner = deserialize(config)
    assert isinstance(inner, Optimizer)
    return LossScaleOptimizer(inner, **arguments)


def _is_loss_scale_optimizer(class_name: str) -> bool:
    return class_name.lower() == LossScaleOptimizer.__name__.lower()


def _hyperparameter(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.get("class_name") == _PER_PUSH["class_name"]:
        return PerPush()
    if name != "learning_rate":
        raise InvalidArgument(
            f"`{name}` cannot be a schedule; the learning rate can. Received: {shown(value)}"
        )
    return schedules.deserialize(value)


def plain(value: Any) -> Any:
    """Return a hyperparameter's JSON form.

    Raises:
        InvalidArgument: It is a callable, which has none.
    """
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
