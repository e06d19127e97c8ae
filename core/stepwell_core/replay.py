"""Makes recorded changes again, by the engine's own methods.

A record is made only if it follows from the model as it is: a journal that goes on from another
checkpoint than this one, or lacks a record, ends in an error and not in another model. It may also
come from a stranger, and the kernels ask nothing of what they are given; so all is asked here.
"""

from __future__ import annotations

from stepwell_core.engine import Engine
from stepwell_core.errors import JournalInvalid, StepwellError
from stepwell_core.hyperparameters import with_rule
from stepwell_core.push import Staged
from stepwell_core.record import (
    Change,
    ConsistencyChanged,
    Finalized,
    OptimizerChanged,
    SessionClosed,
    SessionOpened,
)


def replay(engine: Engine, change: Change) -> None:
    """Make a recorded change again.

    Args:
        engine: As it was when the change was recorded; the same bytes come of it.
        change: From `record.read`.

    Raises:
        JournalInvalid: The change does not follow from the model as it is.
    """
    try:
        _make(engine, change)
    except JournalInvalid:
        raise
    except StepwellError as error:
        raise JournalInvalid(
            f"A record does not follow from those before: {error.message}"
        ) from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise JournalInvalid(
            f"A record has what no model can take ({type(error).__name__})"
        ) from None


def _make(engine: Engine, change: Change) -> None:
    match change:
        case Staged():
            _check_counters(engine, change)
            _check_pushes(engine, change)
            _check_step(engine, change)
            engine.commit(engine.keep(change))
        case SessionOpened():
            session, _ = engine.open_session(change.worker)
            if session.epoch != change.epoch:
                raise JournalInvalid(
                    f"The journal opens session {change.epoch} of worker {change.worker!r}, but "
                    f"{session.epoch} is due"
                )
        case SessionClosed():
            engine.close_session(change.worker, change.epoch)
        case OptimizerChanged():
            engine.adopt_hyperparameters(
                *with_rule(engine.definition, engine.pipeline, change.rule)
            )
        case ConsistencyChanged():
            if engine.gathered().get("count") and not change.consistency.gathers:
                raise JournalInvalid("The mode changes while gradients wait for their step")
            engine.adopt_consistency(change.consistency)
        case Finalized():
            engine.finalize()


def _check_counters(engine: Engine, change: Staged) -> None:
    """Refuse counters that do not come next."""
    before, after, scalars = engine.counters, change.counters, change.scalars
    version, parameters_version = before.version, before.parameters_version
    if scalars is not None:
        version += 1
        parameters_version = version if scalars.changes_parameters else parameters_version
    due = (version, parameters_version, before.iterations + (scalars is not None))
    if (after.version, after.parameters_version, after.iterations) != due:
        raise JournalInvalid(
            f"The journal goes on at version {after.version}, but {version} is due after "
            f"{before.version}: a record is missing, or belongs to another checkpoint"
        )
    if (after.loss_scale is None) is not (before.loss_scale is None):
        raise JournalInvalid("A loss scale belongs to a LossScaleOptimizer, and to no other")


def _check_pushes(engine: Engine, change: Staged) -> None:
    """Refuse pushes that their sessions may not make now."""
    workers = {push.worker for push, _ in change.results}
    if len(workers) != len(change.results):
        raise JournalInvalid("A record has two pushes of one worker")
    for push, _ in change.results:
        due = engine.ledger.find(push.worker, push.epoch).last_sequence + 1
        if push.sequence != due:
            raise JournalInvalid(
                f"The journal has push {push.sequence} of worker {push.worker!r}, but {due} is due"
            )


def _check_step(engine: Engine, change: Staged) -> None:
    """Refuse what the kernels, which ask nothing, or the buffer cannot take."""
    if change.scalars is not None and not engine.pipeline.takes(change.scalars):
        raise JournalInvalid("A record has the scalars of another optimizer's step")
    if change.takes_buffer and change.weight is None and not engine.gathered().get("count"):
        raise JournalInvalid("A record makes a step of what was gathered, and nothing was")
