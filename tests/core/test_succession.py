"""What comes after a model whose history is cut is made first, and changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from stepwell_core.errors import CheckpointInvalid, LayoutMismatch
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import SGD
from stepwell_core.succession import replaced, restored

from tests.core.models import LAYOUT, SECOND, Worker, image, new_engine, saved

ONES = {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4)}


def trained(pushes=3):
    """Return a model with momentum after some pushes."""
    engine = new_engine(SGD(0.5, momentum=0.9))
    worker = Worker(engine)
    for _ in range(pushes):
        worker.push(ONES)
    return engine


def test_versions_and_epochs_never_go_back():
    """Whichever of the two is further."""
    past, engine = saved(trained(1)), trained(5)
    Worker(engine, "w1")
    before = image(engine)

    state = restored(engine.state(), past)

    assert image(engine) == before
    assert state.counters.version == state.counters.parameters_version == 6
    assert state.counters.iterations == 1
    assert state.ledger.last_epoch == 2
    engine.adopt(state, SECOND)
    assert engine.counters == state.counters
    assert engine.incarnation == SECOND


def test_a_state_of_another_layout_or_optimizer_is_refused():
    """All or nothing."""
    engine, past = trained(), saved(trained())
    other = Layout([Tensor("other", (3,), "float32")])
    foreign = replace(past, definition=replace(past.definition, layout=other))

    with pytest.raises(CheckpointInvalid, match="another layout"):
        restored(engine.state(), foreign)
    with pytest.raises(CheckpointInvalid, match="slots"):
        restored(engine.state(), replace(past, slots={}))


def test_arrays_are_replaced_each_for_itself():
    """What is not given stays."""
    engine = trained()
    ones, twos = LAYOUT.new_arenas(1.0), LAYOUT.new_arenas(2.0)

    alone = replaced(engine.state(), parameters=ones)
    slots = replaced(engine.state(), slots={"momentum": twos}, iterations=7)

    assert alone.parameters is ones
    assert alone.slots["momentum"] is engine.store.slots["momentum"]
    assert slots.parameters is engine.store.current
    assert (slots.slots["momentum"], slots.counters.iterations) == (twos, 7)
    engine.adopt(slots, SECOND)
    assert engine.store.slots["momentum"]["float32"].tolist() == [2.0] * 12
    assert engine.counters.version == 4


def test_arrays_that_do_not_fit_are_refused():
    """With which."""
    engine = trained()
    with pytest.raises(LayoutMismatch):
        replaced(engine.state(), parameters={"float32": np.ones(3, np.float32)})
    with pytest.raises(CheckpointInvalid, match=r"slots \['momentum'\]"):
        replaced(engine.state(), slots={"velocity": LAYOUT.new_arenas(0.0)})
