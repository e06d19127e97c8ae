"""What comes after a model when its history is cut: restored, overwritten, given other slots.

The state that is to come is made first, and changes nothing; so it can be saved before
`Engine.adopt` makes it the model's, and nobody sees what a crash could take back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stepwell_core.buffer import BUFFER
from stepwell_core.errors import CheckpointInvalid, LayoutMismatch
from stepwell_core.layout import Arenas
from stepwell_core.state import Counters, State, check_state, pipeline_of


def restored(present: State, past: State) -> State:
    """Return what a model becomes by going back to a state.

    The version goes on from the larger of the two, so that it never repeats for other bytes; so do
    the epochs.

    Args:
        present: The model as it is.
        past: What a checkpoint held.

    Raises:
        CheckpointInvalid: It is of another layout, or no state of a model.
    """
    if past.definition.layout != present.definition.layout:
        raise CheckpointInvalid("The checkpoint has another layout than the model.")
    check_state(past, pipeline_of(past.definition))
    ledger = past.ledger.cut()
    ledger.last_epoch = max(present.ledger.last_epoch, ledger.last_epoch)
    return replace(
        past,
        counters=_after(present.counters, past.counters),
        ledger=ledger,
    )


def replaced(
    present: State,
    parameters: Arenas | None = None,
    slots: Mapping[str, Arenas] | None = None,
    iterations: int | None = None,
) -> State:
    """Return what a model becomes with other arrays.

    Args:
        present: The model as it is.
        parameters: None leaves them.
        slots: All of the optimizer's; None leaves them.
        iterations: Keras's raw counter; None leaves it.

    Raises:
        LayoutMismatch: The parameters are not of the model's layout.
        CheckpointInvalid: The slots are not those of the optimizer, or not of the model's layout.
    """
    if parameters is not None and not present.definition.layout.fits(parameters):
        raise LayoutMismatch("The parameters are not of the model's layout; nothing changed.")
    counters = _after(present.counters, present.counters)
    if iterations is not None:
        counters = replace(counters, iterations=iterations)
    state = replace(
        present,
        counters=counters,
        parameters=present.parameters if parameters is None else parameters,
        slots=present.slots if slots is None else _with_buffer(present, slots),
    )
    check_state(state, pipeline_of(state.definition))
    return state


def _with_buffer(present: State, slots: Mapping[str, Arenas]) -> dict[str, Arenas]:
    """Return other slots of the optimizer, and what the model has gathered, which is none of it."""
    kept = {BUFFER: present.slots[BUFFER]} if BUFFER in present.slots else {}
    return {**slots, **kept}


def _after(present: Counters, past: Counters) -> Counters:
    version = max(present.version, past.version) + 1
    return replace(past, version=version, parameters_version=version)
