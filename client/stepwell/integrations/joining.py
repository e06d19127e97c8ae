"""A model is created by whoever comes first, and joined by the others, who need the role push."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stepwell_core.errors import Forbidden, ModelDiffers, ModelNotFound

from stepwell.client import Client, Model
from stepwell.optimizers import as_optimizer, rule_of, without_callables


def created_or_joined(
    client: Client, name: str, optimizer: Any, create: Callable[[], Model]
) -> Model:
    """Return what `create` returns, or the model that is there if this token may not create.

    Args:
        client: Of the server.
        name: Of the model.
        optimizer: With which it would be created. Numbers of it may have changed since.
        create: Creates it, or opens it if it exists with the same definition.

    Raises:
        Forbidden: There is no such model, and the token's role may not create it.
        ModelDiffers: It has another rule.
    """
    try:
        return create()
    except Forbidden as error:
        forbidden = error
    try:
        model = client.model(name)
    except ModelNotFound:
        raise not_there_yet(name, forbidden) from None
    _check_same_rule(model, optimizer)
    return model


def not_there_yet(name: str, error: Forbidden) -> Forbidden:
    """Return the error of who may not create a model that is not there, with what to do."""
    return Forbidden(
        f"There is no model {name!r} yet, and this token may not create it. Create it with a token "
        f"of the role admin first ({error.message})",
        **error.details,
    )


def _check_same_rule(model: Model, optimizer: Any) -> None:
    ours = rule_of(without_callables(as_optimizer(optimizer)))
    theirs = rule_of(model.optimizer())
    if _kind(ours) != _kind(theirs):
        raise ModelDiffers(
            f"There is a model {model.name!r} already, with the optimizer {type(theirs).__name__}. "
            f"Received: {type(ours).__name__}, or other slots or values that come with each push. "
            "Use its optimizer, or another name",
            model=model.name,
            differences=["optimizer"],
        )


def _kind(rule: Any) -> tuple[Any, ...]:
    """Return what no administrator changes while a model trains."""
    return (
        type(rule),
        rule.slots.keys(),
        rule.use_ema,
        rule.gradient_accumulation_steps,
        rule.declared_per_push,
    )
