"""What is asked of a push before a policy decides on it, apart from its session and its number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stepwell_core.definition import Definition
from stepwell_core.errors import InvalidInput, MixedKinds, NonFiniteGradient, StaleIncarnation
from stepwell_core.gradient import DELTA_SCALE
from stepwell_core.push import Push
from stepwell_core.push import check_push as check
from stepwell_core.session import Session
from stepwell_core.state import Counters
from stepwell_core.wire import Kind


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
    check(push, definition, newest_version)


def with_loss_scale(push: Push, definition: Definition, counters: Counters) -> Push:
    """Say in the gradient what it has still to be divided by.

    A delta is no gradient of a scaled loss, so whatever the push or the model say of one it is
    divided by -1.
    """
    scale = DELTA_SCALE if push.is_delta else push.loss_scale
    if scale is None:
        current = counters.loss_scale
        scale = definition.rule.loss_scale_factor if current is None else current.scale
    if scale is None:
        return push
    return replace(push, gradient=replace(push.gradient, loss_scale=scale))


def check_kind(push: Push, others: Iterable[Kind]) -> None:
    """Refuse a push of another kind than those that it would make a step with.

    A gradient is scaled by a learning rate for gradients, a delta by one near 1: their mean is
    neither.

    Args:
        push: As it came.
        others: Those of the pushes that are there for the step already.

    Raises:
        MixedKinds: One of them is another.
    """
    for other in others:
        if other != push.kind:
            raise MixedKinds(
                f"All pushes of one step are of one kind, and what is there for it already is a "
                f"{other}. Received: a {push.kind}; nothing changed. Let all workers of the model "
                f"push the same kind",
                expected=other,
                received=push.kind,
            )


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
        what = "value" if name in definition.state else push.kind
        raise NonFiniteGradient(
            f"The {what} of {name!r} has NaN or infinity in it and this model rejects those; "
            "nothing changed. Lower the learning rate, clip, or create the model with "
            "on_nonfinite='drop'",
            tensor=name,
        )
    return False
