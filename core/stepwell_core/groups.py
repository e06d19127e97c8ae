"""Groups of a model's tensors with hyperparameters of their own.

    rate = own learning rate, or the optimizer's, times learning_rate_multiplier

A group says what differs from the optimizer: it takes the same rule and the same slots, with other
numbers. A value may come with each push; its name there is `group/hyperparameter`, such as
`head/learning_rate`. A tensor that is in no group takes the optimizer as it is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from stepwell_core import keras_config
from stepwell_core.errors import InvalidArgument, InvalidInput, shown
from stepwell_core.names import check_identifier
from stepwell_core.optimizers import Optimizer, PerPush

MAX_GROUPS = 256
"""Each costs a few hundred bytes a journal record, and a call of the kernel a step."""

_FIELDS = {"name", "tensors", "learning_rate_multiplier", "hyperparameters"}


@dataclass(frozen=True)
class ParameterGroup:
    """Tensors that are optimized with numbers of their own.

    Attributes:
        name: An identifier, unique in the model.
        tensors: Names; a tensor is in one group at most.
        learning_rate_multiplier: Finite and >= 0.
        hyperparameters: By Keras's names, those that differ from the optimizer's: `learning_rate`,
            `weight_decay` and the rule's own numbers. `PerPush` for a value that comes with each
            push. None that would change the slots or the rule.
    """

    name: str
    tensors: tuple[str, ...]
    learning_rate_multiplier: float = 1.0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be in any model."""
        check_identifier(self.name, "group")
        if isinstance(self.tensors, str):
            raise InvalidArgument(f"`tensors` is a list of names. Received: {shown(self.tensors)}")
        object.__setattr__(self, "tensors", tuple(self.tensors))
        if not self.tensors:
            raise InvalidArgument(f"Group {self.name!r} has at least one tensor. Received: none")
        factor = self.learning_rate_multiplier
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not (is_number and math.isfinite(factor) and factor >= 0):
            raise InvalidArgument(
                f"`learning_rate_multiplier` is finite and >= 0. Received: {shown(factor)} for "
                f"group {self.name!r}"
            )
        object.__setattr__(self, "learning_rate_multiplier", float(factor))

    def rule(self, optimizer: Optimizer, values: Mapping[str, float] | None = None) -> Optimizer:
        """Return the optimizer of this group's tensors.

        Args:
            optimizer: The model's.
            values: That came with a push, by the names of `declared_per_push`; None leaves
                `PerPush` in their places.

        Raises:
            InvalidArgument: A value breaks its hyperparameter's rule.
        """
        own = self.hyperparameters
        if not own:
            return optimizer
        if values is None:
            return optimizer.with_values(own)
        now = ((n, self._now(n, value, values)) for n, value in own.items())
        return _with_values(optimizer, tuple(now))

    def _now(self, name: str, value: Any, values: Mapping[str, float]) -> Any:
        return float(values[f"{self.name}/{name}"]) if isinstance(value, PerPush) else value

    @property
    def declared_per_push(self) -> tuple[str, ...]:
        """The names of the values that come with each push."""
        own = self.hyperparameters
        return tuple(f"{self.name}/{n}" for n, value in own.items() if isinstance(value, PerPush))

    def to_json(self) -> dict[str, Any]:
        """Return plain values from which `from_json` makes an equal group."""
        return {
            "name": self.name,
            "tensors": list(self.tensors),
            "learning_rate_multiplier": self.learning_rate_multiplier,
            "hyperparameters": {
                name: keras_config.plain(value) for name, value in self.hyperparameters.items()
            },
        }

    @classmethod
    def from_json(cls, value: object, optimizer: Optimizer) -> ParameterGroup:
        """Return the group that `to_json` described; `value` may come from a stranger.

        Args:
            value: Plain values.
            optimizer: Of the model.

        Raises:
            InvalidInput: Something is missing, unknown or not allowed.
        """
        if not isinstance(value, Mapping) or not {"name", "tensors"} <= value.keys() <= _FIELDS:
            raise InvalidInput(
                'A group is {"name", "tensors", "learning_rate_multiplier"?, "hyperparameters"?}. '
                f"Received: {shown(value)}"
            )
        tensors, own = value["tensors"], value.get("hyperparameters", {})
        if not isinstance(tensors, list) or not all(isinstance(name, str) for name in tensors):
            raise InvalidInput(f"`tensors` is a list of names. Received: {shown(tensors)}")
        if not isinstance(own, Mapping):
            raise InvalidInput(f"`hyperparameters` is an object. Received: {shown(own)}")
        return cls(
            name=value["name"],
            tensors=tuple(tensors),
            learning_rate_multiplier=value.get("learning_rate_multiplier", 1.0),
            hyperparameters=keras_config.hyperparameters(type(optimizer), own),
        )


@lru_cache(maxsize=4 * MAX_GROUPS)
def _with_values(optimizer: Optimizer, values: tuple[tuple[str, Any], ...]) -> Optimizer:
    # Kept, since most pushes say what the last one said, and it is asked for twice a push.
    return optimizer.with_values(dict(values))


def groups_from_json(value: object, optimizer: Optimizer) -> tuple[ParameterGroup, ...]:
    """Return the groups of a list; see `ParameterGroup.from_json`."""
    if not isinstance(value, list | tuple) or len(value) > MAX_GROUPS:
        raise InvalidInput(f"`groups` is a list of at most {MAX_GROUPS}. Received: {shown(value)}")
    return tuple(ParameterGroup.from_json(entry, optimizer) for entry in value)


def check_groups(
    groups: Iterable[ParameterGroup], names: Collection[str], optimizer: Optimizer
) -> None:
    """Refuse groups that do not fit a model.

    Args:
        groups: Of the model.
        names: Of the tensors that may be in one.
        optimizer: Of the model.

    Raises:
        InvalidArgument: A name occurs twice or is unknown, or hyperparameters would change the
            slots or the rule.
    """
    groups = tuple(groups)
    if len({group.name for group in groups}) != len(groups) or len(groups) > MAX_GROUPS:
        raise InvalidArgument(
            f"Each of at most {MAX_GROUPS} groups has its own name. Received: "
            f"{', '.join(group.name for group in groups)[:200]}"
        )
    free = set(names)
    for group in groups:
        for name in group.tensors:
            if name not in free:
                raise InvalidArgument(
                    f"Group {group.name!r} has tensors of the model that are optimized and in no "
                    f"other group. Received: {shown(name)}",
                    tensor=shown(name),
                )
            free.remove(name)
        _check_rule(group, optimizer)


def _check_rule(group: ParameterGroup, optimizer: Optimizer) -> None:
    for name in group.hyperparameters:
        if name not in optimizer.group_names:
            raise InvalidArgument(
                f"A group may have its own {', '.join(optimizer.group_names)}. Received: "
                f"{shown(name)} for group {group.name!r}; all tensors of a model share it"
            )
    check_same_rule(group.rule(optimizer), optimizer, f"group {group.name!r}")


def check_same_rule(changed: Optimizer, optimizer: Optimizer, what: str) -> None:
    """Refuse numbers with which an optimizer would have other slots or be another rule.

    Raises:
        InvalidArgument: It would.
    """
    if changed.update is not optimizer.update or changed.slots != optimizer.slots:
        raise InvalidArgument(
            "All tensors of a model have the same slots and the same rule, so some numbers, such "
            f"as a momentum, are zero for all or for none. Received otherwise: {what}"
        )
