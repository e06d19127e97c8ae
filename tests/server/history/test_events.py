"""Events: a closed list, plain values, and numbers that JSON can say."""

from __future__ import annotations

import json
import math

from stepwell_core.definition import Definition
from stepwell_core.optimizers import Adam
from stepwell_server.history.events import (
    EVENTS,
    KINDS,
    SAMPLE_KINDS,
    Entry,
    Event,
    changed_hyperparameters,
)

from tests.server.history.entries import entry, step
from tests.server.registries import LAYOUT


def test_the_list_of_kinds_is_closed_and_each_is_one():
    """Whoever adds an event adds it to the list."""
    assert set(EVENTS) == set(Event.__subclasses__())
    assert len(set(KINDS)) == len(EVENTS)
    assert SAMPLE_KINDS == ("step", "drop")


def test_a_metric_of_several_workers_is_drawn_as_their_mean():
    """In the step itself each has its own."""
    event = step(3, metrics={"a": {"loss": 1.0, "accuracy": 0.5}, "b": {"loss": 2.0}})

    series = event.series()

    assert (series["metrics.loss"], series["metrics.accuracy"]) == (1.5, 0.5)
    assert event.fields()["metrics"]["b"] == {"loss": 2.0}


def test_what_is_not_finite_is_in_no_series_and_null_in_json():
    """JSON has no NaN, and SQLite neither."""
    event = step(1, gradient_norm=math.inf, update_norm=math.nan, learning_rate=0.1)

    message = Entry(1, 2.0, event).message.decode()

    assert not {"gradient_norm", "update_norm"} & event.series().keys()
    data = json.loads(message.split("data: ")[1])
    assert (data["gradient_norm"], data["learning_rate"]) == (None, 0.1)


def test_a_name_cannot_break_out_of_its_line():
    """A server-sent event ends with an empty line, which JSON never has."""
    message = entry(1, step(1, metrics={"w0": {"a\n\nevent: forged": 1.0}})).message

    assert message.count(b"\n\n") == 1
    assert message.endswith(b"\n\n")


def test_only_the_hyperparameters_that_changed_are_told():
    """The old and the new value, by Keras's names."""
    before = Definition("m", LAYOUT, Adam(0.5))
    after = Definition("m", LAYOUT, Adam(0.25, beta_1=0.8))

    event = changed_hyperparameters(7, before, after)

    assert event.version == 7
    assert event.new.keys() == event.old.keys() == {"learning_rate", "beta_1"}
    assert (event.old["learning_rate"], event.new["learning_rate"]) == (0.5, 0.25)
