"""What a model is, apart from its numbers: tensors, optimizer, consistency, rules for NaN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stepwell_core import consistency, keras_config
from stepwell_core.consistency import Async, Consistency
from stepwell_core.errors import InvalidArgument, InvalidInput
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

    @property
    def rule(self) -> Optimizer:
        """The optimizer that makes the steps, without a loss scale around it."""
        optimizer = self.optimizer
        return optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer

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
        mine, theirs = self._as_created(), other._as_created()
        return [field for field in mine if mine[field] != theirs[field]]

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
        return cls(
            name=value["name"],
            layout=Layout.from_json(value["tensors"]),
            optimizer=keras_config.deserialize(value["optimizer"]),
            excluded=tuple(excluded),
            consistency=consistency.from_json(given.get("consistency", "async")),
            on_nonfinite=given.get("on_nonfinite", "reject"),
            created_with=keras_config.deserialize(given["created_with"])
            if "created_with" in given
            else None,
            created_consistency=consistency.from_json(given["created_consistency"])
            if "created_consistency" in given
            else None,
        )


def _without_names(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_names(item) for key, item in value.items() if key != "name"}
