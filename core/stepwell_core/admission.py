"""What is asked of a push before a policy decides on it, apart from its session and its number."""

from __future__ import annotations

from dataclasses import replace

from stepwell_core.definition import Definition
from stepwell_core.errors import InvalidInput, NonFiniteGradient, StaleIncarnation
from stepwell_core.ledger import Session
from stepwell_core.push import Push
from stepwell_core.push import check_push as check
from stepwell_core.state import Counters


def stale(
    incarnation: str, counters: Counters, session: Session | None, epoch: int
) -> StaleIncarnation:
    """Return the error of a push that belongs to a history that was cut.

    Args:
        incarnation: The model's.
        counters: The model's.
        session: The worker's newest, if it has one.
        epoch: That the push says.
    """
    if session is not None and session.epoch != epoch:
        session = None  # the numbers of another session say nothing about this one's pushes
    return StaleIncarnation(
        "The model's history was cut since this session was opened: it was restored, "
        "overwritten or created anew, or the server crashed and came back from a checkpoint. "
        f"It is at version {counters.version} now. Open a new session (`worker.open()`), "
        "pull, and go on",
        incarnation=incarnation,
        version=counters.version,
        parameters_version=counters.parameters_version,
        last_sequence=None if session is None else session.last_sequence,
    )


def check_push(push: Push, definition: Definition, newest_version: int) -> None:
    """Refuse a push that breaks a rule of its model, whatever its gradient holds.

    Raises:
        InvalidInput, InvalidArgument: See `push.check_push`; or its mode has to know how old the
            gradient is, and it does not say so.
    """
    if push.version is None and definition.consistency.needs_version:
        raise InvalidInput(
            "This model limits how stale a gradient may be, so each push says at which `version` "
            "of the parameters it was computed. Pull first. Received: version=None"
        )
    check(push, definition.rule, newest_version)


def with_loss_scale(push: Push, definition: Definition, counters: Counters) -> Push:
    """Say in the gradient what it has still to be divided by."""
    scale = push.loss_scale
    if scale is None:
        current = counters.loss_scale
        scale = definition.rule.loss_scale_factor if current is None else current.scale
    if scale is None:
        return push
    return replace(push, gradient=replace(push.gradient, loss_scale=scale))


def is_acceptable(push: Push, definition: Definition, counters: Counters) -> bool:
    """Return whether a gradient is finite, or its model does not mind.

    A dynamic loss scale looks at all gradients of a step later.

    Raises:
        NonFiniteGradient: It is not, and the model rejects those.
    """
    action = definition.on_nonfinite
    if counters.loss_scale is not None or action == "allow" or push.gradient.is_finite():
        return True
    if action == "reject":
        name = push.gradient.first_nonfinite()
        raise NonFiniteGradient(
            f"The gradient of {name!r} has NaN or infinity in it and this model rejects those; "
            "nothing changed. Lower the learning rate, clip, or create the model with "
            "on_nonfinite='drop'",
            tensor=name,
        )
    return False
