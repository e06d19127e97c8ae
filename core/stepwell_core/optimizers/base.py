"""What every optimizer has: the options that Keras gives all of them, and the contract of a rule.

An optimizer is a frozen dataclass of hyperparameters under their Keras names. It holds numbers,
never arrays: the store keeps the slots, `pipeline.py` applies the options here in Keras's order,
and `kernels` compiles the rule.

Source: Keras 3.15, `base_optimizer.py`. What differs: hyperparameters that are callables are
evaluated by the client, once a push, and arrive as numbers (`PerPush` is their place in the
configuration).
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np

from stepwell_core.errors import InvalidArgument, shown

Scalar = np.float32 | np.float64
Hyperparameter = float | Callable[..., Any]
"""A number, a callable without arguments (evaluated by the client) or `PerPush`."""


def number(value: Hyperparameter) -> float:
    """Return a hyperparameter that is a number by now: `PerPush` was replaced by its value."""
    assert not callable(value), "values that come with a push take their place before the step"
    return value


@dataclass(frozen=True)
class PerPush:
    """Stands for a hyperparameter whose value comes with each push."""

    def __call__(self) -> float:
        """Refuse: there is no value here."""
        raise InvalidArgument("The value of this hyperparameter comes with each push.")


@dataclass(frozen=True)
class Optimizer(ABC):
    """The options common to all optimizers, with Keras's names, defaults and conditions.

    Attributes:
        learning_rate: A float, a schedule (a callable with the step) or a callable without
            arguments.
        weight_decay: If set, `w = w - w * weight_decay * learning_rate` before the rule; or
            `g = g + weight_decay * w`, if the rule says so (`couples_weight_decay`).
        clipnorm: If set, each tensor's gradient is scaled to at most this norm.
        clipvalue: If set, each element of a gradient is clipped to +- this value.
        global_clipnorm: If set, the gradient of all tensors is scaled to at most this norm.
        use_ema: Keep an exponential moving average of the parameters in the slot `average`.
        ema_momentum: `average = ema_momentum * average + (1 - ema_momentum) * w`.
        ema_overwrite_frequency: Overwrite the parameters with the average every so many steps.
        loss_scale_factor: If set, gradients are divided by it first.
        gradient_accumulation_steps: If set, k >= 2: update on every k-th push with the mean of k.
        name: As in Keras; by default the class's name in snake case.
    """

    learning_rate: Hyperparameter
    _: KW_ONLY
    weight_decay: Hyperparameter | None = None
    clipnorm: float | None = None
    clipvalue: float | None = None
    global_clipnorm: float | None = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    ema_overwrite_frequency: int | None = None
    loss_scale_factor: float | None = None
    gradient_accumulation_steps: int | None = None
    name: str | None = None

    per_push_names: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """The hyperparameters that may be callables without arguments."""

    module: ClassVar[str] = "keras.optimizers"
    """Where the class of this name is from, in the JSON form."""

    excluded_patterns: ClassVar[tuple[str, ...]] = ()
    """What `exclude_from_weight_decay` was told; shadowed on the instance."""

    def __post_init__(self) -> None:
        """Refuse what Keras refuses, with what was received."""
        check_learning_rate(self.learning_rate)
        _check_types(self)
        check_name(self.name)
        steps = self.gradient_accumulation_steps
        if steps and steps < 2:
            raise InvalidArgument(
                "`gradient_accumulation_steps` must be an integer >= 2. Received: "
                f"gradient_accumulation_steps={steps!r}"
            )
        if self.use_ema:
            self._check_ema()
        clips = (self.clipnorm, self.clipvalue, self.global_clipnorm)
        if sum(value is not None for value in clips) > 1:
            raise InvalidArgument(
                "Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set. Received: "
                f"clipnorm={self.clipnorm}, clipvalue={self.clipvalue}, "
                f"global_clipnorm={self.global_clipnorm}"
            )

    def _check_ema(self) -> None:
        if not 0 <= self.ema_momentum <= 1:
            raise InvalidArgument(
                "`ema_momentum` must be in the range [0, 1]. Received: "
                f"ema_momentum={self.ema_momentum}"
            )
        frequency = self.ema_overwrite_frequency
        if frequency and frequency < 1:
            raise InvalidArgument(
                "`ema_overwrite_frequency` must be an integer >= 1 or None. Received: "
                f"ema_overwrite_frequency={frequency!r}"
            )

    @property
    @abstractmethod
    def slots(self) -> dict[str, float]:
        """The rule's slots in the order in which `update` takes them, with their initial values."""

    @property
    @abstractmethod
    def update(self) -> Callable[..., tuple[Any, ...]]:
        """The rule for one element: `update(w, g, *slots, *scalars) -> (w, *slots)`.

        A plain module-level function, so that it can be read, tested and compiled. Everything it is
        given has the parameter's dtype; literals in it would not, so it has none.
        """

    @abstractmethod
    def scalars(self, learning_rate: Scalar, iterations: int) -> tuple[Scalar, ...]:
        """Return what the rule needs once a step, computed in Keras's order of operations.

        Args:
            learning_rate: Of this step, in the parameter's dtype, which is the dtype of the result.
            iterations: Steps made so far (Keras's `iterations`, not its raw counter).
        """

    @property
    def learning_rate_value(self) -> float:
        """The learning rate as Keras holds it: a float goes through float32.

        Raises:
            InvalidArgument: The learning rate is a schedule or a callable.
        """
        if callable(self.learning_rate):
            raise InvalidArgument("The learning rate is a schedule or comes with each push.")
        return float(np.float32(self.learning_rate))

    @property
    def clips_by_norm(self) -> bool:
        """Whether a norm of the gradient is needed."""
        return (self.clipnorm or self.global_clipnorm or 0) > 0

    @property
    def clips_by_value(self) -> bool:
        """Whether each element is clipped."""
        return (self.clipvalue or 0) > 0

    @property
    def couples_weight_decay(self) -> bool:
        """Whether weight decay is added to the gradient, as L2 would; else to the parameter."""
        return False

    @property
    def group_names(self) -> tuple[str, ...]:
        """The hyperparameters that tensors of one model may have different values of."""
        own = [
            field.name
            for field in dataclasses.fields(self)
            if field.name not in _COMMON_NAMES and "float" in _kinds(field)
        ]
        return ("learning_rate", "weight_decay", *own)

    @property
    def declared_per_push(self) -> tuple[str, ...]:
        """The hyperparameters whose values come with each push."""
        return tuple(
            name for name in self.per_push_names if isinstance(getattr(self, name), PerPush)
        )

    def exclude_from_weight_decay(self, var_names: Iterable[str] = ()) -> Self:
        """Leave tensors out of weight decay, as in Keras; call it before the model is created.

        Args:
            var_names: Regular-expression fragments; a tensor is left out if one is found in its
                name. A new call replaces what an earlier one said.

        Returns:
            The optimizer itself, so that the call can stand behind the constructor.

        Raises:
            InvalidArgument: A fragment is not a regular expression.
        """
        patterns = tuple([var_names] if isinstance(var_names, str) else var_names)
        try:
            re.compile("|".join(patterns))
        except (re.error, TypeError) as error:
            raise InvalidArgument(
                f"`var_names` are regular-expression fragments ({error}). Received: "
                f"var_names={shown(var_names)}"
            ) from None
        object.__setattr__(self, "excluded_patterns", patterns)  # as in Keras, it changes this one
        return self

    def excluded_from_weight_decay(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of `names` that `exclude_from_weight_decay` leaves out."""
        if not self.excluded_patterns:
            return ()
        pattern = re.compile("|".join(self.excluded_patterns))
        return tuple(name for name in names if pattern.search(name))

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """Return an optimizer with some hyperparameters replaced; integers are taken for floats.

        Raises:
            InvalidArgument: A name is not a hyperparameter, or a value breaks its rule.
        """
        check_argument_names(type(self), values)
        changed = dataclasses.replace(self, **self.with_floats(values))
        return changed.exclude_from_weight_decay(self.excluded_patterns)

    @classmethod
    def with_floats(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return `values` with integers turned into floats where an argument is a float.

        JSON has one kind of number: R and JavaScript write 1 for 1.0.
        """
        floats = {field.name for field in dataclasses.fields(cls) if "float" in _kinds(field)}
        return {
            name: float(value)
            if name in floats and type(value) is int and abs(value) <= _LARGEST_FLOAT
            else value
            for name, value in values.items()
        }

    def get_config(self) -> dict[str, Any]:
        """Return Keras's `get_config()` for the same arguments, keys in Keras's order."""
        own = [field.name for field in dataclasses.fields(self) if field.name not in _COMMON_NAMES]
        config: dict[str, Any] = {name: getattr(self, name) for name in (*_COMMON_NAMES, *own)}
        config["name"] = snake_case(type(self).__name__) if self.name is None else self.name
        if not callable(self.learning_rate):
            config["learning_rate"] = self.learning_rate_value
        return config


_COMMON_NAMES = (  # the order of Keras's base get_config
    "name",
    "learning_rate",
    "weight_decay",
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)

_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "None": (type(None),),
}
_LARGEST_FLOAT = float(np.finfo(np.float64).max)
_LARGEST_INT = 2**31 - 1  # Keras counts iterations in int32
_LONGEST_NAME = 256


@cache  # a push with values of its own makes optimizers anew
def _kinds(field: dataclasses.Field[Any]) -> list[str]:
    """Return the keys of `_KINDS` that a field's type names."""
    names = str(field.type).replace("Hyperparameter", "float").split("|")
    return [name.strip() for name in names]


def _check_types(optimizer: Optimizer) -> None:
    """Refuse values that are not of their field's type; configurations come from strangers."""
    for field in dataclasses.fields(optimizer):
        value, kinds = getattr(optimizer, field.name), _kinds(field)
        if callable(value) and field.name in optimizer.per_push_names:
            continue
        is_kind = isinstance(value, tuple(kind for name in kinds for kind in _KINDS[name]))
        if isinstance(value, bool):
            is_kind = "bool" in kinds
        elif isinstance(value, int | float):
            largest = _LARGEST_FLOAT if "float" in kinds else _LARGEST_INT
            is_kind = is_kind and -largest <= value <= largest  # not so for NaN
        if not is_kind:
            raise InvalidArgument(
                f"`{field.name}` must be a finite {' or '.join(kinds)}. Received: "
                f"{field.name}={shown(value)}"
            )


def check_name(name: object) -> None:
    """Raise unless `name` is None or what Keras takes as a scope."""
    if name is None:
        return
    is_scope = isinstance(name, str) and "/" not in name and name.isprintable()
    if not is_scope or len(str(name)) > _LONGEST_NAME:
        raise InvalidArgument(
            f"Argument `name` must be a printable string of at most {_LONGEST_NAME} characters "
            f"without `/`. Received: name={shown(name)}"
        )


def check_learning_rate(learning_rate: object) -> None:
    """Raise unless `learning_rate` is a float or callable; Keras takes nothing else."""
    if not isinstance(learning_rate, float) and not callable(learning_rate):
        raise InvalidArgument(
            "Argument `learning_rate` should be float, or an instance of LearningRateSchedule, or "
            f"a callable without arguments. Received: learning_rate={shown(learning_rate)}"
        )


def check_argument_names(cls: type, values: Iterable[str]) -> None:
    """Raise unless each of `values` is an argument of the dataclass `cls`."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            raise InvalidArgument(
                f"{cls.__name__} has no argument {shown(name)}. It has: {', '.join(known)}"
            )


def snake_case(name: str) -> str:
    """Return Keras's name for an object of a class: `LossScaleOptimizer`, loss_scale_optimizer."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
