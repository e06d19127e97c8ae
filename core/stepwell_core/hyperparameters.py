"""Hyperparameters that change while a model trains: which may, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from stepwell_core.definition import Definition
from stepwell_core.errors import InvalidArgument
from stepwell_core.optimizers import Optimizer
from stepwell_core.pipeline import Pipeline
from stepwell_core.schedules import LearningRateSchedule
from stepwell_core.state import pipeline_of


def with_hyperparameters(
    definition: Definition, pipeline: Pipeline, values: Mapping[str, Any]
) -> tuple[Definition, Pipeline]:
    """Return the definition and the pipeline of a model with other hyperparameters.

    Args:
        definition: As it is.
        pipeline: As it is.
        values: By Keras's names.

    Raises:
        InvalidArgument: A value breaks its rule, is set over a schedule, or would change the slots
            or which values come with each push.
    """
    rule = definition.rule
    value = values.get("learning_rate")
    if isinstance(value, float | int) and isinstance(rule.learning_rate, LearningRateSchedule):
        raise InvalidArgument(
            "This optimizer was created with a LearningRateSchedule as its `learning_rate`, hence "
            "its learning rate is not settable. Create it with a float `learning_rate` instead"
        )
    if told := [name for name in rule.declared_per_push if name in values]:
        raise InvalidArgument(
            f"Of this model each push brings its own {', '.join(told)}, which counts for its step. "
            "Change it where the gradients are computed: torch's param_groups or scheduler, or the "
            "callable that the optimizer was made with"
        )
    return with_rule(definition, pipeline, rule.with_values(values))


def with_rule(
    definition: Definition, pipeline: Pipeline, rule: Optimizer
) -> tuple[Definition, Pipeline]:
    """Return the definition and the pipeline of a model with another rule of the same kind.

    Raises:
        InvalidArgument: The slots, or which values come with each push, would change.
    """
    before = definition.rule
    definition = definition.with_rule(rule)
    changed = pipeline_of(definition)
    if type(rule) is not type(before) or _fixed(pipeline) != _fixed(changed):
        raise InvalidArgument(
            "These hyperparameters cannot change while training, since the slots, or the values "
            f"that come with each push, would: {', '.join(_differing(before, rule))}. Create "
            "another model"
        )
    return definition, changed


def _differing(before: Optimizer, after: Optimizer) -> list[str]:
    if type(before) is not type(after):
        return ["the optimizer itself"]
    names = sorted(part.name for part in fields(before))
    return [name for name in names if getattr(before, name) != getattr(after, name)]


def _fixed(pipeline: Pipeline) -> tuple[Any, ...]:
    """Return what may not change during the life of a model."""
    optimizer = pipeline.optimizer
    return (
        pipeline.slot_values.keys(),
        optimizer.gradient_accumulation_steps,
        optimizer.declared_per_push,
    )
