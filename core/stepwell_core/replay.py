"""Makes recorded changes again, by the engine's own methods."""

from __future__ import annotations

from stepwell_core.engine import Engine
from stepwell_core.errors import JournalInvalid, StepwellError
from stepwell_core.pipeline import Pipeline
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


def _make(engine: Engine, change: Change) -> None:
    match change:
        case Staged():
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
            definition = engine.definition.with_rule(change.rule)
            pipeline = Pipeline(
                definition.layout,
                definition.rule,
                definition.excluded,
                definition.groups,
                definition.state,
            )
            engine.adopt_hyperparameters(definition, pipeline)
        case ConsistencyChanged():
            engine.adopt_consistency(change.consistency)
        case Finalized():
            engine.finalize()
