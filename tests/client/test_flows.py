"""Tests of `stepwell.flows`: what is asked of a server and of a model, driven by hand."""

from __future__ import annotations

import numpy as np
import pytest
import stepwell
from stepwell.errors import (
    ConnectionFailed,
    InvalidName,
    ModelExists,
    TimedOut,
    UnexpectedAnswer,
)
from stepwell.flows import ModelFlows, ServerFlows
from stepwell.retry import Patience, Timeout
from stepwell_core.layout import Layout

from tests.client.flow_driver import Script, header_of

PARAMETERS = {"w": np.zeros(3, np.float32)}
LAYOUT = Layout.of(PARAMETERS)
DESCRIBED = {"name": "digits", "tensors": LAYOUT.to_json()}
CHECKPOINT = {"id": "c1", "version": 3, "created": "2026-01-01T00:00:00Z", "bytes": 12}


def server():
    """Return the flows of a server that was reached."""
    return ServerFlows(Patience(Timeout(), was_reached=True))


def model():
    """Return the flows of one of its models."""
    return ModelFlows("digits", LAYOUT, server().patience, {})


def create(exist_ok=False, optimizer=None):
    """Return the flow that creates a model."""
    return server().create_model(
        "digits", PARAMETERS, optimizer or stepwell.SGD(0.5), None, "reject", exist_ok=exist_ok
    )


def test_a_created_model_keeps_the_callables_of_its_optimizer():
    """Workers of this object evaluate them; the server has their places only."""
    rate = lambda: 0.5  # noqa: E731

    created = Script(DESCRIBED).run(create(optimizer=stepwell.SGD(rate)))

    assert (created.name, created.layout, created.callables) == (
        "digits", LAYOUT, {"learning_rate": rate}
    )  # fmt: skip


def test_creating_is_not_repeated_when_the_answer_is_lost():
    """The second attempt would say that the model exists."""
    script = Script(TimedOut("x"))

    with pytest.raises(TimedOut):
        script.run(create())

    assert len(script.calls) == 1


def test_creating_with_exist_ok_is_repeated():
    """Then a second attempt does no harm."""
    script = Script(TimedOut("x"), DESCRIBED)

    script.run(create(exist_ok=True))

    assert header_of(script.calls[1])["exist_ok"] is True


def test_an_existing_model_is_an_error_of_its_own():
    """What the server says is raised as it is."""
    with pytest.raises(ModelExists):
        Script(ModelExists("x", status=409)).run(create())


def test_a_model_with_an_optimizer_of_a_newer_server_can_be_opened():
    """To pull and to push, the client need not know the optimizer."""
    described = {**DESCRIBED, "optimizer": {"class_name": "Lion"}}

    opened = Script(described).run(server().open_model("digits"))

    assert opened.layout == LAYOUT


@pytest.mark.parametrize("described", [{}, {"name": "digits"}, {"tensors": []}])
def test_a_model_that_is_not_described_is_not_of_a_stepwell_server(described):
    """Another service on the port is told apart."""
    with pytest.raises((UnexpectedAnswer, stepwell.errors.InvalidInput)):
        Script(described).run(server().open_model("digits"))


@pytest.mark.parametrize("name", ["../x", "", "A", None, "a/b", "x" * 65])
@pytest.mark.parametrize("ask", ["open_model", "delete_model"])
def test_a_name_never_becomes_a_path_unchecked(ask, name):
    """Nothing is sent for a name that no model can have."""
    with pytest.raises(InvalidName):
        Script().run(getattr(server(), ask)(name))


@pytest.mark.parametrize("name", ["../../other/checkpoints/c1", "", "C1"])
def test_a_checkpoint_never_becomes_a_path_unchecked(name):
    """The same for checkpoints and workers."""
    with pytest.raises(InvalidName):
        Script().run(model().restore(name))
    with pytest.raises(InvalidName):
        model().session(name, None)


def test_models_are_listed_by_name():
    """The rest of what the server says is left to `describe`."""
    script = Script({"models": [{"name": "a", "version": 3}, {"name": "b"}]})

    assert script.run(server().models()) == ["a", "b"]


def test_a_checkpoint_that_cannot_be_read_is_listed_with_the_reason():
    """Who looks at the newest one must not be given an older one for it."""
    damaged = {"id": "c2", "version": 4, "pinned": True, "invalid": "its manifest is damaged"}
    script = Script({"checkpoints": [CHECKPOINT, damaged]})

    listed = script.run(model().checkpoints())

    assert listed == [
        stepwell.Checkpoint(**CHECKPOINT),
        stepwell.Checkpoint(**damaged, created="", bytes=0),
    ]
    assert [checkpoint.invalid for checkpoint in listed] == [None, "its manifest is damaged"]


@pytest.mark.parametrize("progress", [None, {"phase": "writing", "done_bytes": 1, "bytes": 4}])
def test_a_checkpoint_that_is_being_written_tells_how_far_it_is(progress):
    """Nothing, if there is none."""
    script = Script({"checkpoints": [], "progress": progress})

    found = script.run(model().checkpoint_progress())

    assert found == (progress and stepwell.CheckpointProgress("writing", 1, 4))


def test_a_checkpoint_is_restored_by_itself_or_by_its_id():
    """Both are the same call."""
    for chosen in ("c1", stepwell.Checkpoint(**CHECKPOINT)):
        script = Script({"version": 9})

        assert script.run(model().restore(chosen)) == 9
        assert script.asked == ["POST /checkpoints/c1/restore"]


@pytest.mark.parametrize(
    ("flow", "path"),
    [
        (lambda: model().finalize(), "/finalize"),
        (lambda: model().checkpoint(), "/checkpoints"),
        (lambda: model().restore("c1"), "/checkpoints/c1/restore"),
    ],
)
def test_what_would_do_harm_twice_is_asked_once(flow, path):
    """An answer that is lost is told, and the caller looks what happened."""
    script = Script(ConnectionFailed("x", was_sent=True))

    with pytest.raises(ConnectionFailed):
        script.run(flow())

    assert script.asked == [f"POST {path}"]


@pytest.mark.parametrize(
    "flow",
    [
        lambda: model().describe(),
        lambda: model().checkpoints(),
        lambda: model().set_hyperparameters({"learning_rate": 0.5}),
    ],
)
def test_what_does_no_harm_twice_is_asked_again(flow):
    """Reading, and setting a value to what it is already."""
    script = Script(ConnectionFailed("x", was_sent=True), {"checkpoints": []})

    script.run(flow())

    assert len(script.calls) == 2


def test_a_worker_of_a_model_has_its_callables_and_its_own():
    """What a worker is given wins over the model's."""
    flows = ModelFlows("digits", LAYOUT, server().patience, {"learning_rate": lambda: 0.5})

    session = flows.session("w0", {"beta_1": 0.25})

    assert session._hyperparameters.keys() == {"learning_rate", "beta_1"}
