"""What a decision comes to, before anything is written: the results and the counters after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stepwell_core.definition import Definition
from stepwell_core.gradient import Gradient
from stepwell_core.ledger import Result
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.pipeline import Pipeline
from stepwell_core.push import Push, Staged
from stepwell_core.state import Counters


def step(
    pushes: Sequence[Push],
    gradient: Gradient,
    before: Counters,
    definition: Definition,
    pipeline: Pipeline,
) -> Staged:
    """Return the step that some pushes make.

    Args:
        pushes: In the order of their workers; the first says the values that come with each push.
        gradient: Theirs, reduced.
        before: The model's counters now.
        definition: Of the model.
        pipeline: Of the model.
    """
    scalars = pipeline.scalars(
        before.iterations,
        gradient.loss_scale,
        pushes[0].hyperparameters,
        assigns=pipeline.assigns(gradient.layout),
    )
    scale, optimizer = before.loss_scale, definition.optimizer
    if scale is not None and isinstance(optimizer, LossScaleOptimizer):
        scale = scale.after_finite(optimizer.dynamic_growth_steps)
    version = before.version + 1
    after = Counters(
        version=version,
        parameters_version=version if scalars.changes_parameters else before.parameters_version,
        iterations=before.iterations + 1,
        loss_scale=scale,
    )
    outcome = "applied" if scalars.updates else "accumulated"
    return Staged(_results(pushes, outcome, before, after), after, gradient, scalars)


def drop(push: Push, outcome: str, counters: Counters) -> Staged:
    """Return that a push has no effect but its result."""
    return Staged(_results((push,), outcome, counters, counters), counters)


def skipped_step(pushes: Sequence[Push], before: Counters) -> Staged:
    """Return that a step is not made because a gradient is not finite: the loss scale is halved."""
    assert before.loss_scale is not None, "only a dynamic loss scale skips steps"
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
