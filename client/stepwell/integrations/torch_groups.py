"""What a user of torch gives for parameters and groups, checked and made into one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from stepwell_core.errors import (
    DtypeMismatch,
    InvalidArgument,
    LayoutMismatch,
    ShapeMismatch,
    shown,
)
from stepwell_core.layout import Layout

from stepwell.integrations.torch_rules import Rules, rules_of_ours, rules_of_torch
from stepwell.optimizers import as_optimizer, rule_of

NamedTensors = Iterable[tuple[str, torch.Tensor]]

HELD = {torch.float32: "float32", torch.float64: "float64"}
"""The dtypes that the server holds, by torch's."""

OF_TORCH_ALONE = frozenset(
    dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype) and name.startswith(("bfloat", "float8"))
)
"""The dtypes that NumPy has not."""


def taken_apart(
    parameters: NamedTensors | Iterable[Mapping[str, Any]],
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]] | None]:
    """Return the parameters by name, and the groups if there were such.

    Raises:
        InvalidArgument: They have no names, or a name or parameter comes twice.
    """
    entries = list(parameters)
    groups = [dict(entry) for entry in entries if isinstance(entry, Mapping)]
    if groups and len(groups) != len(entries):
        raise InvalidArgument("Parameters are all in groups or none. Received: a mixture")
    for group in groups:
        group["params"] = list(group["params"])
    pairs = [pair for group in groups for pair in group["params"]] if groups else entries
    named: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise InvalidArgument(
                "The server knows parameters by name: give module.named_parameters(), or groups "
                f"whose `params` are pairs (name, parameter). Received: {type(pair).__name__}"
            )
        if pair[0] in named:
            raise InvalidArgument(f"Each parameter comes once. Received twice: {shown(pair[0])}")
        if (first := names.setdefault(id(pair[1]), pair[0])) != pair[0]:
            raise InvalidArgument(
                f"Each parameter comes once. Received one as {shown(first)} and as "
                f"{shown(pair[0])}; give module.named_parameters(), which has a shared one once"
            )
        named[pair[0]] = pair[1]
    if not named:
        raise InvalidArgument("There is at least one parameter. Received: none")
    return named, groups or None


def check_parameters(named: Mapping[str, torch.Tensor]) -> None:
    """Raise unless there are parameters, with numbers in them, of dtypes that the server holds.

    Raises:
        DtypeMismatch: One is of another dtype.
        InvalidArgument: All are frozen, or one has no numbers yet.
    """
    if not named:
        raise InvalidArgument(
            "At least one parameter needs a gradient. Received: none that does; unfreeze those "
            "that are to be trained (requires_grad_(True))"
        )
    for name, parameter in named.items():
        if torch.nn.parameter.is_lazy(parameter) or parameter.is_meta:
            raise InvalidArgument(
                f"A parameter has numbers to begin with. Received: {name!r}, which has none yet; "
                "call a lazy module with one batch first, and move a meta one to a device "
                "(to_empty) and initialize it",
                tensor=name,
            )
        if parameter.dtype not in HELD:
            raise DtypeMismatch(
                f"The server holds parameters of float32 and float64. Received: {name!r} of "
                f"{parameter.dtype}; keep the parameters in float32, and compute in "
                "torch.autocast",
                tensor=name,
                received=str(parameter.dtype),
            )


def check_buffers(buffers: Mapping[str, torch.Tensor]) -> None:
    """Raise `DtypeMismatch` if the server would not give back the numbers that a buffer has."""
    for name, buffer in buffers.items():
        wide = buffer.dtype in (torch.int64, torch.uint64)
        if buffer.is_complex() or (
            wide and not torch.equal(buffer.double().to(buffer.dtype), buffer)
        ):
            raise DtypeMismatch(
                "Buffers are held as float64, in which each number must have a place. Received: "
                f"{name!r} of {buffer.dtype}; leave it out: [(name, buffer) for name, buffer in "
                f"module.named_buffers() if name != {name!r}]",
                tensor=name,
                received=str(buffer.dtype),
            )


def held(buffers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return buffers as the server holds them: whole numbers as float64, which has 53 bits."""
    return {
        name: buffer.detach() if buffer.dtype in HELD else buffer.detach().double()
        for name, buffer in buffers.items()
    }


def check_layout(layout: Layout, named: Mapping[str, torch.Tensor]) -> None:
    """Refuse a model on the server that has other parameters than the module."""
    missing = [name for name in layout.names if name not in named]
    unknown = [name for name in named if name not in layout.segments]
    if missing or unknown:
        raise LayoutMismatch(
            "The module's parameters that need a gradient are not those of the model on the "
            f"server. Missing: {', '.join(missing[:8]) or 'none'}; unknown: "
            f"{', '.join(unknown[:8]) or 'none'}. Use the same module, or another model",
            missing=missing[:16],
            unknown=unknown[:16],
        )
    for tensor in layout:
        parameter = named[tensor.name]
        if tuple(parameter.shape) != tensor.shape:
            raise ShapeMismatch(
                f"Parameter {tensor.name!r} has shape {tensor.shape} on the server. Received: "
                f"{tuple(parameter.shape)} in the module. Use the same module, or another model",
                tensor=tensor.name,
                expected=list(tensor.shape),
                received=list(parameter.shape),
            )
        if HELD[parameter.dtype] != tensor.dtype:
            raise DtypeMismatch(
                f"Parameter {tensor.name!r} is {tensor.dtype} on the server. Received: "
                f"{HELD[parameter.dtype]} in the module. Convert it, or use another model",
                tensor=tensor.name,
                expected=tensor.dtype,
                received=HELD[parameter.dtype],
            )


def groups_of(
    optimizer: Any,
    given: Sequence[Mapping[str, Any]] | None,
    named: Mapping[str, torch.Tensor],
    options: dict[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Any], Rules]:
    """Return param_groups with names, their defaults, and the server's rules."""
    names = {id(parameter): name for name, parameter in named.items()}
    inner = getattr(optimizer, "func", optimizer)  # a functools.partial of a class
    if isinstance(inner, type) and issubclass(inner, torch.optim.Optimizer):
        plain = [_unnamed(group, names) for group in given or [{"params": [*named.items()]}]]
        optimizer = optimizer([group for group in plain if group["params"]], **options)
    elif options:
        raise InvalidArgument(
            "Options are those of a class of torch. Received with an optimizer that has its own: "
            f"{', '.join(options)}"
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        if given is not None and inner is optimizer:
            raise InvalidArgument(
                "An optimizer of torch has its groups. Received others beside it: give "
                "module.named_parameters()"
            )
        if any(float(state.get("step", 1)) for state in optimizer.state.values()):
            raise InvalidArgument(
                "An optimizer of torch is given before its first step, for its state would be "
                f"lost. Received: the state of {len(optimizer.state)} parameters"
            )
        if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            raise InvalidArgument(
                "A scheduler of torch changes the optimizer that it was made of. Received: an "
                f"{type(optimizer).__name__} that has one; make the scheduler of the "
                "RemoteOptimizer, after it"
            )
        groups = [_named(group, names) for group in optimizer.param_groups]
        groups = [group for group in groups if group["params"]]
        _check_all_there(groups, named)
        return (
            groups,
            dict(optimizer.defaults),
            rules_of_torch(optimizer, groups, _names_in(groups)),
        )
    chosen = as_optimizer(optimizer)
    rule = rule_of(chosen)
    rate = rule.learning_rate
    defaults = {
        "lr": float(rate(0)) if callable(rate) else rule.learning_rate_value,
        "weight_decay": rule.weight_decay,
    }
    plain = [_unnamed(group, names) for group in given or [{"params": [*named.items()]}]]
    groups = [_named({**defaults, **group}, names) for group in plain if group["params"]]
    return groups, defaults, rules_of_ours(chosen, groups, _names_in(groups))


def _unnamed(group: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Return a group without names, and without parameters that are frozen."""
    return {**group, "params": [p for _, p in group["params"] if id(p) in names]}


def _named(group: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """Return a group with names, and without parameters that are frozen.

    Raises:
        InvalidArgument: A parameter has no name.
    """
    unknown = [p for p in group["params"] if p.requires_grad and id(p) not in names]
    if unknown:
        raise InvalidArgument(
            "The optimizer's parameters are those of named_parameters(). Received: one of shape "
            f"{tuple(unknown[0].shape)} that is not among them"
        )
    own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    return {**own, "params": [(names[id(p)], p) for p in group["params"] if id(p) in names]}


def _names_in(groups: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    return [[name for name, _ in group["params"]] for group in groups]


def _check_all_there(groups: Iterable[Mapping[str, Any]], named: Mapping[str, Any]) -> None:
    there = {name for names in _names_in(groups) for name in names}
    for name in named:
        if name not in there:
            raise InvalidArgument(
                f"Parameter {name!r} is in no group of the optimizer. Freeze it "
                "(requires_grad_(False)), or give it to the optimizer"
            )
