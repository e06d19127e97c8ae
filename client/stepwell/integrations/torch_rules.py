"""torch's optimizers as rules of the server: what a parameter group says, under our names.

A `Mapping` is made once, when the model is created, and says with each push what the groups say
then: torch's schedulers change `param_groups[i]["lr"]`, some of them the momentum or the betas too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from stepwell_core import contrast, keras_config
from stepwell_core.errors import InvalidArgument, ModelDiffers, shown
from stepwell_core.groups import ParameterGroup
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import Optimizer, PerPush, TorchAdagrad, TorchAdam, TorchSGD

from stepwell.optimizers import callables_of, rule_of

Group = Mapping[str, Any]
"""One of `param_groups`."""

_NAMES: dict[type, dict[str, str]] = {
    TorchSGD: {
        "lr": "learning_rate",
        "momentum": "momentum",
        "dampening": "dampening",
        "nesterov": "nesterov",
        "weight_decay": "weight_decay",
    },
    TorchAdagrad: {
        "lr": "learning_rate",
        "lr_decay": "learning_rate_decay",
        "initial_accumulator_value": "initial_accumulator_value",
        "eps": "epsilon",
        "weight_decay": "weight_decay",
    },
    TorchAdam: {
        "lr": "learning_rate",
        "eps": "epsilon",
        "amsgrad": "amsgrad",
        "weight_decay": "weight_decay",
        "decoupled_weight_decay": "decoupled_weight_decay",
    },
}
"""torch's name of each hyperparameter, and ours; `betas` are two of ours."""

_RULES: dict[type, type[Optimizer]] = {
    torch.optim.SGD: TorchSGD,
    torch.optim.Adagrad: TorchAdagrad,
    torch.optim.Adam: TorchAdam,
    torch.optim.AdamW: TorchAdam,
}

OWN_NAMES = {"lr": "learning_rate", "weight_decay": "weight_decay"}
"""What the groups say where the rule is one of ours, given as such."""


@dataclass(frozen=True)
class Rules:
    """The rule of a model and of its groups, and where their numbers come from.

    Attributes:
        optimizer: For the server; the first of `param_groups` is its own.
        groups: For the server: the other ones.
        names: torch's name of each hyperparameter, and ours.
        fixed: Of each of `param_groups`, by our names: what was said once and cannot change.
    """

    optimizer: AnyOptimizer
    groups: tuple[ParameterGroup, ...]
    names: Mapping[str, str]
    fixed: tuple[Mapping[str, Any], ...]

    def values(self, groups: Sequence[Group]) -> dict[str, float]:
        """Return the values that a push sends: what the groups say now.

        Raises:
            InvalidArgument: A group says another value of something that cannot change.
        """
        rule = rule_of(self.optimizer)
        declared = [rule.declared_per_push, *(group.declared_per_push for group in self.groups)]
        sent: dict[str, float] = {}
        for names, group, fixed in zip(declared, groups, self.fixed, strict=True):
            _check_descends(group)
            now = said(group, self.names)
            _check_fixed(now, fixed)
            sent |= {name: now[name.rpartition("/")[2]] or 0.0 for name in names}
        return sent


def _check_descends(group: Group) -> None:
    if group.get("maximize"):
        raise InvalidArgument("The server descends: negate the loss. Received: maximize=True")


def _check_fixed(now: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    for name, value in fixed.items():
        if name in now and now[name] != value:
            raise InvalidArgument(
                f"`{name}` was {shown(value)} when the model was created, and comes with no push. "
                f"Received: {shown(now[name])} in param_groups; set it back, or create another "
                "model"
            )


def said(group: Group, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the hyperparameters that a group says, under our names; no decay is None."""
    values = {ours: _plain(group[theirs]) for theirs, ours in names.items() if theirs in group}
    if "betas" in group:
        values["beta_1"], values["beta_2"] = map(_plain, group["betas"])
    return {**values, "weight_decay": values.get("weight_decay") or None}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.item()
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def rules_of_torch(
    optimizer: torch.optim.Optimizer, groups: Sequence[Group], tensors: Sequence[Sequence[str]]
) -> Rules:
    """Return the rules that compute what an optimizer of torch would.

    Args:
        optimizer: As it was made.
        groups: Of its `param_groups` those that are trained.
        tensors: The names of each of these groups' parameters.

    Raises:
        InvalidArgument: It is of another class, has an option that the server does not, or made
            steps already.
    """
    cls = _RULES.get(type(optimizer))
    if cls is None:
        known = ", ".join(f"torch.optim.{known.__name__}" for known in _RULES)
        raise InvalidArgument(
            f"The server computes what {known} do, and no other of torch. Received: "
            f"{type(optimizer).__name__}"
        )
    for group in groups:
        _check_descends(group)
    described = [said(group, _NAMES[cls]) for group in groups]
    if cls is TorchAdam:
        is_decoupled = isinstance(optimizer, torch.optim.AdamW)
        for values in described:
            values.setdefault("decoupled_weight_decay", is_decoupled)
    declared = [_declared(cls, values) for values in described]
    return _rules(cls(**declared[0]), declared, described, tensors, _NAMES[cls])


def rules_of_ours(
    optimizer: AnyOptimizer, groups: Sequence[Group], tensors: Sequence[Sequence[str]]
) -> Rules:
    """Return the rules of one of our optimizers; its rate comes with each push if it is a number.

    Args:
        optimizer: Ours, perhaps with a dynamic loss scale.
        groups: torch's, each with `lr` and `weight_decay`.
        tensors: The names of each group's parameters.

    Raises:
        InvalidArgument: A hyperparameter is a callable, or a group's value breaks its rule.
    """
    if callables := callables_of(optimizer):
        raise InvalidArgument(
            "With torch a hyperparameter is a number, which torch's schedulers change. Received a "
            f"callable for: {', '.join(callables)}"
        )
    rule = rule_of(optimizer)
    described = [said(group, OWN_NAMES) for group in groups]
    declared = [dict(values) for values in described]
    for values in declared:
        values["learning_rate"] = rule.learning_rate if callable(rule.learning_rate) else PerPush()
    return _rules(rule.with_values(declared[0]), declared, described, tensors, OWN_NAMES, optimizer)


def check_same(rules: Rules, described: Mapping[str, Any], state: Sequence[str]) -> None:
    """Refuse a model that would make other steps.

    Args:
        rules: As they would be.
        described: The model, as the server describes it.
        state: The names of its state tensors, as they would be.

    Raises:
        ModelDiffers: Something is different.
    """
    fields = {
        "optimizer": (described["optimizer"], _as_kept(rules.optimizer)),
        "groups": (described.get("groups", []), [group.to_json() for group in rules.groups]),
        "state": (described.get("state", []), list(state)),
    }
    pairs = {field: (_nameless(there), _nameless(ours)) for field, (there, ours) in fields.items()}
    differing = [field for field, (there, ours) in pairs.items() if there != ours]
    if differing:
        said = ", ".join(contrast.in_words(field, *pairs[field]) for field in differing)
        raise ModelDiffers(
            f"There is a model {described['name']!r} already, and it differs from what this module "
            f"needs: {said}. Make the optimizer that it has, or use another name",
            model=described["name"],
            differences=differing,
        )


def _as_kept(optimizer: AnyOptimizer) -> dict[str, Any]:
    """Return plain values as the server has them, whose numbers are rounded as Keras's are."""
    return keras_config.serialize(keras_config.deserialize(keras_config.serialize(optimizer)))


def _nameless(value: Any) -> Any:
    """Return plain values without the names that Keras gives to optimizers and schedules."""
    if isinstance(value, Mapping):
        return {key: _nameless(inner) for key, inner in value.items() if key != "name"}
    return value


def _declared(cls: type[Optimizer], values: Mapping[str, Any]) -> dict[str, Any]:
    """Let all numbers come with each push that may; those that are off stay off."""
    comes = {name for name in cls.per_push_names if values[name] or name == "learning_rate"}
    return {**values, **dict.fromkeys(comes, PerPush())}


def _rules(
    rule: Optimizer,
    declared: Sequence[Mapping[str, Any]],
    described: Sequence[Mapping[str, Any]],
    tensors: Sequence[Sequence[str]],
    names: Mapping[str, str],
    around: AnyOptimizer | None = None,
) -> Rules:
    """Return rules, of which the first group's is the model's own."""
    groups = []
    for position, own in enumerate(declared[1:], 1):
        differing = {
            name: value
            for name, value in own.items()
            if isinstance(value, PerPush) or value != declared[0][name]
        }
        group = ParameterGroup(f"group-{position}", tuple(tensors[position]), 1.0, differing)
        groups.append(group)
    fixed = tuple(
        {name: values[name] for name, value in own.items() if not isinstance(value, PerPush)}
        for own, values in zip(declared, described, strict=True)
    )
    optimizer: AnyOptimizer = rule
    if isinstance(around, LossScaleOptimizer):
        optimizer = replace(around, inner_optimizer=rule)
    return Rules(optimizer, tuple(groups), names, fixed)
