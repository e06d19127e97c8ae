"""What happened to a model, for people: every step and everything that is no step.

    events.py      the kinds of events, a closed list
    ring.py        the last few thousand, in memory, by number
    listeners.py   who is told of them as they come
    database.py    all of them, in a file that is only appended to, behind a thread of its own
    reading.py     a range of that file, thinned out to so many points a series
    steps.py       makes an event of a step; measures some of them
    history.py     the facade: `add` from any thread, `listen`, `read`

The history is no journal: nothing is recovered from it, and nothing waits for it. A push that is
answered may be missing from the file after a crash.
"""

from stepwell_server.history.events import (
    CheckpointWritten,
    ConsistencyChanged,
    Dropped,
    Event,
    Finalized,
    HistoryCut,
    HyperparametersChanged,
    Joined,
    Left,
    LossScaleChanged,
    Started,
    Step,
    changed_hyperparameters,
)
from stepwell_server.history.history import History
from stepwell_server.history.steps import StepRecorder

__all__ = [
    "CheckpointWritten",
    "ConsistencyChanged",
    "Dropped",
    "Event",
    "Finalized",
    "History",
    "HistoryCut",
    "HyperparametersChanged",
    "Joined",
    "Left",
    "LossScaleChanged",
    "Started",
    "Step",
    "StepRecorder",
    "changed_hyperparameters",
]
