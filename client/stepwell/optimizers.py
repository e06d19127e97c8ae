"""Optimizers as users give them: ours, Keras's, or Keras's JSON; and their callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stepwell_core import keras_config
from stepwell_core.errors import InvalidArgument
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import Optimizer, PerPush
from stepwell_core.schedules import LearningRateSchedule

Hyperparameters = Mapping[str, float | Callable[[], float]]


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
            f"keras.optimizers.serialize gives it. Received: {_foreign(value)}"
        )
    inner = getattr(value, "inner_optimizer", value)  # it makes the steps, so its exclusions count
    _check_says_all(inner)
    optimizer = keras_config.deserialize(
        {"class_name": type(value).__name__, "config": value.get_config()}
    )
    pattern = getattr(inner, "_exclude_from_weight_decay_pattern", None)
    return optimizer.exclude_from_weight_decay([pattern.pattern]) if pattern else optimizer


def _foreign(value: Any) -> str:
    """Return what an optimizer is that is none of ours, and what to take instead."""
    kind = value if isinstance(value, type) else type(value)
    name = f"the class {kind.__name__}" if kind is value else kind.__name__
    package = kind.__module__.partition(".")[0]
    if package == "torch":
        return f"{name} of torch; stepwell.integrations.torch.RemoteOptimizer takes it"
    if package == "optax":
        return (
            f"{name} of optax, which is functions and cannot be sent; say the same as "
            "stepwell.Adam(1e-3)"
        )
    return f"{name}; make an instance of it" if kind is value else name


def _check_says_all(optimizer: Any) -> None:
    """Refuse what a live Keras optimizer holds and its configuration cannot say."""
    if getattr(optimizer, "_exclude_from_weight_decay", None):
        raise InvalidArgument(
            "This Keras optimizer excludes variables from weight decay by `var_list`; name them "
            "with `var_names` instead"
        )
    learning_rate = getattr(optimizer, "_learning_rate", None)
    if callable(learning_rate) and not hasattr(learning_rate, "get_config"):
        raise InvalidArgument(
            "A Keras optimizer cannot say a `learning_rate` that is a callable. Give the callable "
            "to a Stepwell optimizer: stepwell.Adam(learning_rate=...)"
        )


def rule_of(optimizer: AnyOptimizer) -> Optimizer:
    """Return the optimizer that makes the steps, without a loss scale around it."""
    return optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer


def callables_of(optimizer: AnyOptimizer) -> dict[str, Callable[[], float]]:
    """Return the hyperparameters that are called once a push, by name."""
    rule = rule_of(optimizer)
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
    rule = rule_of(optimizer).with_values(dict.fromkeys(names, PerPush()))
    if isinstance(optimizer, LossScaleOptimizer):
        return replace(optimizer, inner_optimizer=rule)
    return rule
