"""What a model is, apart from its numbers: tensors, optimizer, consistency, rules for NaN."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stepwell_core import consistency, contrast, keras_config
from stepwell_core.consistency import Async, Consistency
from stepwell_core.errors import InvalidArgument, InvalidInput, shown
from stepwell_core.groups import ParameterGroup, check_groups, check_same_rule, groups_from_json
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Layout
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.names import check_identifier
from stepwell_core.optimizers import Optimizer

ON_NONFINITE = ("reject", "drop", "allow")
"""What may happen to a gradient with NaN or infinity: refused, dropped, or applied as it is."""

ASYNC = Async()

_FIELDS = {
    "name",
    "tensors",
    "optimizer",
    "exclude_from_weight_decay",
    "groups",
    "state",
    "consistency",
    "on_nonfinite",
    "created_with",
    "created_consistency",
}


@dataclass(frozen=True)
class Definition:
    """Everything about a model that is decided when it is created.

    Attributes:
        name: An identifier.
        layout: Its tensors.
        optimizer: Rule and options, perhaps with a dynamic loss scale around it.
        excluded: Names of tensors without weight decay, in layout order.
        consistency: When pushes become a step.
        on_nonfinite: One of `ON_NONFINITE`; a dynamic loss scale skips such a step whatever this
            says.
        groups: Tensors with hyperparameters of their own.
        state: Names of tensors that are not optimized but set by pushes, such as the statistics of
            a batch normalization; in layout order.
        created_with: The optimizer at creation, if hyperparameters were changed since.
        created_consistency: The mode at creation, if it was changed since.
    """

    name: str
    layout: Layout
    optimizer: AnyOptimizer
    excluded: tuple[str, ...] = ()
    consistency: Consistency = ASYNC
    on_nonfinite: str = "reject"
    created_with: AnyOptimizer | None = None
    created_consistency: Consistency | None = None
    groups: tuple[ParameterGroup, ...] = ()
    state: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        check_identifier(self.name, "model")
        if self.on_nonfinite not in ON_NONFINITE:
            raise InvalidArgument(
                f"`on_nonfinite` is one of {', '.join(ON_NONFINITE)}. Received: "
                f"{repr(self.on_nonfinite)[:80]}"
            )
        if self.excluded:
            selection = self.layout.select(self.excluded)
            object.__setattr__(self, "excluded", selection.names)
        if self.state:
            object.__setattr__(self, "state", self.layout.select(self.state).names)
            if len(self.state) == len(self.layout):
                raise InvalidArgument(
                    "A model has at least one tensor that is optimized. Received: all in `state`"
                )
        if self.groups:
            check_groups(self.groups, self.optimized, self.rule)

    @property
    def rule(self) -> Optimizer:
        """The optimizer that makes the steps, without a loss scale around it."""
        return rule_of(self.optimizer)

    @property
    def optimized(self) -> tuple[str, ...]:
        """The names of the tensors that are no state, in layout order."""
        state = set(self.state)
        return tuple(name for name in self.layout.names if name not in state)

    def check_tensors(self, names: Collection[str], state: Collection[str]) -> None:
        """Refuse a push that has values where gradients belong, or gradients where values do.

        Args:
            names: Of all tensors of the push.
            state: Of those that it says have values.

        Raises:
            InvalidInput: They are not exactly those of the model's state, or there is no gradient.
        """
        if not self.state and not state:
            return
        expected = set(self.state).intersection(names)
        wrong = sorted(expected.symmetric_difference(state))
        if wrong:
            is_value = wrong[0] in expected
            raise InvalidInput(
                f"Tensor {shown(wrong[0])} is {'state: it' if is_value else 'optimized: it'} takes "
                f"{'a value, in `state`' if is_value else 'a gradient'}. Received: "
                f"{'a gradient' if is_value else 'a value'}",
                tensor=shown(wrong[0]),
            )
        if len(expected) == len(names):
            raise InvalidInput(
                "A push has a gradient of at least one tensor. Received: state alone"
            )

    @property
    def declared_per_push(self) -> tuple[str, ...]:
        """The names of all values that come with each push."""
        own = (name for group in self.groups for name in group.declared_per_push)
        return (*self.rule.declared_per_push, *own)

    def check_values(self, values: Mapping[str, float]) -> None:
        """Refuse values of a push that are not those declared, or break a rule.

        Raises:
            InvalidInput: Others were declared.
            InvalidArgument: A value is not allowed.
        """
        declared = set(self.declared_per_push)
        if values.keys() != declared:
            raise InvalidInput(
                f"With each push come values for: {', '.join(sorted(declared))[:400] or 'none'}. "
                f"Received: {', '.join(sorted(values))[:200] or 'none'}",
                expected=sorted(declared)[:64],
            )
        if not declared:
            return
        common = {name: value for name, value in values.items() if "/" not in name}
        rule = self.rule.with_values(common)
        check_same_rule(rule, self.rule, "a value that came with a push")
        for group in self.groups:
            own = group.rule(rule, values)
            check_same_rule(own, self.rule, f"a value of group {group.name!r}")

    def with_rule(self, rule: Optimizer) -> Definition:
        """Return the definition with other hyperparameters."""
        optimizer: AnyOptimizer = rule
        if isinstance(self.optimizer, LossScaleOptimizer):
            optimizer = replace(self.optimizer, inner_optimizer=rule)
        return replace(self, optimizer=optimizer, created_with=self.created_with or self.optimizer)

    def with_consistency(self, mode: Consistency) -> Definition:
        """Return the definition with another mode."""
        created = self.created_consistency or self.consistency
        return replace(self, consistency=mode, created_consistency=created)

    def differences(self, other: Definition) -> list[str]:
        """Return in which fields two definitions differ as they were created.

        Names of optimizers do not count, since Keras numbers them: adam, adam_1, ...
        """
        return list(self.contrast(other))

    def contrast(self, other: Definition) -> dict[str, str]:
        """Return the `differences`, each in words: what is here, and what came."""
        mine, theirs = self._as_created(), other._as_created()
        return {
            field: contrast.in_words(field, mine.get(field), theirs.get(field))
            for field in {**mine, **theirs}
            if mine.get(field) != theirs.get(field)
        }

    def _as_created(self) -> dict[str, Any]:
        optimizer = _without_names(keras_config.serialize(self.created_with or self.optimizer))
        mode = (self.created_consistency or self.consistency).to_json()
        return {
            **self.to_json(),
            "optimizer": optimizer,
            "created_with": None,
            "consistency": mode,
            "created_consistency": None,
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain values from which `from_json` makes an equal definition."""
        return {
            "name": self.name,
            "tensors": self.layout.to_json(),
            "optimizer": keras_config.serialize(self.optimizer),
            "exclude_from_weight_decay": list(self.excluded),
            "consistency": self.consistency.to_json(),
            "on_nonfinite": self.on_nonfinite,
            "created_with": self.created_with and keras_config.serialize(self.created_with),
            "created_consistency": self.created_consistency and self.created_consistency.to_json(),
            # Left out where there are none, so that an older server can read it.
            **({"state": list(self.state)} if self.state else {}),
            **({"groups": [group.to_json() for group in self.groups]} if self.groups else {}),
        }

    @classmethod
    def from_json(cls, value: object) -> Definition:
        """Return the definition that `to_json` described; `value` may come from a stranger.

        Raises:
            InvalidInput: Something is missing, unknown or not allowed.
        """
        if not isinstance(value, Mapping) or not {"name", "tensors", "optimizer"} <= value.keys():
            raise InvalidInput(
                'A model is {"name": ..., "tensors": [...], "optimizer": {...}}. Received: '
                f"{repr(sorted(map(str, value)) if isinstance(value, Mapping) else value)[:80]}"
            )
        if unknown := value.keys() - _FIELDS:
            raise InvalidInput(
                f"A model has the fields {', '.join(sorted(_FIELDS))}. Received also: "
                f"{', '.join(sorted(map(str, unknown)))[:200]}"
            )
        given = {name: part for name, part in value.items() if part is not None}
        excluded = given.get("exclude_from_weight_decay", ())
        if not isinstance(excluded, list | tuple) or not all(isinstance(n, str) for n in excluded):
            raise InvalidInput(
                "`exclude_from_weight_decay` is a list of tensor names. Received: "
                f"{repr(excluded)[:80]}"
            )
        state = given.get("state", ())
        if not isinstance(state, list | tuple) or not all(isinstance(n, str) for n in state):
            raise InvalidInput(f"`state` is a list of tensor names. Received: {shown(state)}")
        optimizer = keras_config.deserialize(value["optimizer"])
        return cls(
            name=value["name"],
            layout=Layout.from_json(value["tensors"]),
            optimizer=optimizer,
            excluded=tuple(excluded),
            consistency=consistency.from_json(given.get("consistency", "async")),
            on_nonfinite=given.get("on_nonfinite", "reject"),
            created_with=keras_config.deserialize(given["created_with"])
            if "created_with" in given
            else None,
            created_consistency=consistency.from_json(given["created_consistency"])
            if "created_consistency" in given
            else None,
            groups=groups_from_json(given.get("groups", ()), rule_of(optimizer)),
            state=tuple(state),
        )


def rule_of(optimizer: AnyOptimizer) -> Optimizer:
    """Return the optimizer that makes the steps, without a loss scale around it."""
    return optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer


def _without_names(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_names(item) for key, item in value.items() if key != "name"}
