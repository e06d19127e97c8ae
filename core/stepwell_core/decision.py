"""What a decision comes to, before anything is written: the results and the counters after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stepwell_core.definition import Definition
from stepwell_core.gradient import Gradient
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.pipeline import Pipeline
from stepwell_core.push import Push, Staged
from stepwell_core.scalars import StepScalars
from stepwell_core.session import Result
from stepwell_core.state import Counters
from stepwell_core.wire import Kind


def step(
    pushes: Sequence[Push],
    gradient: Gradient,
    before: Counters,
    definition: Definition,
    pipeline: Pipeline,
    scale: float = 1.0,
) -> Staged:
    """Return the step that some pushes make.

    Args:
        pushes: In the order of their workers; the first says the values that come with each push.
        gradient: Theirs, reduced.
        before: The model's counters now.
        definition: Of the model.
        pipeline: Of the model.
        scale: What the learning rate is multiplied by.
    """
    scalars = pipeline.scalars(
        before.iterations,
        gradient.loss_scale,
        pushes[0].hyperparameters,
        scale,
        assigns=pipeline.assigns(gradient.layout),
    )
    after = _after_step(before, scalars, definition, pushes[0].kind)
    return Staged(_results(pushes, _outcome(scalars), before, after), after, gradient, scalars)


def gathered(push: Push, gradient: Gradient, counters: Counters) -> Staged:
    """Return that a push is answered, and its gradient added to the buffer.

    Args:
        push: It.
        gradient: As it is added.
        counters: The model's now.
    """
    results = _results((push,), "buffered", counters, counters)
    return Staged(results, counters, gradient, weight=push.weight)


def gathered_step(
    push: Push | None,
    gradient: Gradient | None,
    divisor: float,
    kind: Kind,
    before: Counters,
    definition: Definition,
    pipeline: Pipeline,
    *,
    assigns: bool = False,
) -> Staged:
    """Return the step of all that was gathered.

    Args:
        push: The last of them, which is added first; None if there is no other.
        gradient: Its own, as it is added.
        divisor: What the sum has still to be divided by, with it.
        kind: Of all of them.
        before: The model's counters now.
        definition: Of the model.
        pipeline: Of the model.
        assigns: Whether values of state come with them.
    """
    pushes = () if push is None else (push,)
    values = {} if push is None else push.hyperparameters
    scalars = pipeline.scalars(before.iterations, divisor, values, assigns=assigns)
    after = _after_step(before, scalars, definition, kind)
    results = _results(pushes, _outcome(scalars), before, after)
    return Staged(results, after, gradient, scalars, None if push is None else push.weight)


def _outcome(scalars: StepScalars) -> str:
    return "applied" if scalars.updates else "accumulated"


def _after_step(
    before: Counters, scalars: StepScalars, definition: Definition, kind: Kind
) -> Counters:
    scale, optimizer = before.loss_scale, definition.optimizer
    counts = kind == "gradient"  # a delta says nothing of the scale of a loss
    if counts and scale is not None and isinstance(optimizer, LossScaleOptimizer):
        scale = scale.after_finite(optimizer.dynamic_growth_steps)
    version = before.version + 1
    return Counters(
        version=version,
        parameters_version=version if scalars.changes_parameters else before.parameters_version,
        iterations=before.iterations + 1,
        loss_scale=scale,
    )


def drop(push: Push, outcome: str, counters: Counters) -> Staged:
    """Return that a push has no effect but its result."""
    return Staged(_results((push,), outcome, counters, counters), counters)


def skipped_step(pushes: Sequence[Push], before: Counters) -> Staged:
    """Return that a step is not made because a gradient is not finite: the loss scale is halved.

    A delta that is not finite leaves the scale as it is, which it was not multiplied by.
    """
    assert before.loss_scale is not None, "only a dynamic loss scale skips steps"
    if pushes[0].is_delta:
        return Staged(_results(pushes, "skipped_nonfinite", before, before), before)
    after = replace(before, loss_scale=before.loss_scale.after_nonfinite())
    return Staged(_results(pushes, "skipped_nonfinite", before, after), after)


def _results(
    pushes: Sequence[Push], outcome: str, before: Counters, after: Counters
) -> tuple[tuple[Push, Result], ...]:
    now = before.parameters_version
    scale = None if after.loss_scale is None else after.loss_scale.scale
    return tuple(
        (
            push,
            Result(
                outcome,
                after.version,
                after.parameters_version,
                staleness=0 if push.version is None else now - push.version,
                loss_scale=scale,
            ),
        )
        for push in pushes
    )
