"""Tests of `stepwell.model_calls`: requests as data. No I/O anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import stepwell
from stepwell import model_calls
from stepwell.errors import DtypeMismatch, InvalidArgument, InvalidInput, LayoutMismatch
from stepwell_core.layout import Layout

from tests.client.flow_driver import header_of, payload_of

PARAMETERS = {"w": np.float32([[1, 2], [3, 4]]), "d": np.float64([0.5]), "b": np.float32([5, 6])}
LAYOUT = Layout.of(PARAMETERS)


def test_creating_says_the_whole_definition_and_sends_the_values():
    """Header and payload are what the protocol says, float32 first."""
    optimizer = stepwell.SGD(0.5, weight_decay=0.1).exclude_from_weight_decay(["^b"])

    call = model_calls.create_model(
        "digits",
        PARAMETERS,
        optimizer,
        stepwell.Sync(2, reduction="arrival"),
        "drop",
        exist_ok=True,
    )

    header = header_of(call)
    assert (call.method, call.path, call.can_repeat) == ("POST", "/v1/models", True)
    assert header["name"] == "digits"
    assert header["tensors"] == LAYOUT.to_json()
    assert header["optimizer"]["class_name"] == "SGD"
    assert header["consistency"] == stepwell.Sync(2, reduction="arrival").to_json()
    assert header["consistency"]["reduction"] == "arrival"
    assert (header["on_nonfinite"], header["exist_ok"]) == ("drop", True)
    assert payload_of(call) == b"".join(PARAMETERS[name].tobytes() for name in ("w", "b", "d"))


def test_patterns_of_exclusion_are_resolved_to_names():
    """Regular expressions from strangers would be a denial of service, so names are sent."""
    optimizer = stepwell.SGD(0.5, weight_decay=0.1).exclude_from_weight_decay(["b$", "d"])

    call = model_calls.create_model("digits", PARAMETERS, optimizer, None, "reject", exist_ok=False)

    assert header_of(call)["exclude_from_weight_decay"] == ["d", "b"]


def test_creating_is_not_repeated_blindly():
    """A second attempt would find the model of the first, and say that it exists."""
    call = model_calls.create_model(
        "digits", PARAMETERS, stepwell.SGD(0.5), None, "reject", exist_ok=False
    )

    assert not call.can_repeat


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"w": np.zeros(2, np.int64)}, DtypeMismatch),
        ({"w": None}, DtypeMismatch),
        ({"w": np.zeros(2, np.float16)}, DtypeMismatch),
        ({}, InvalidInput),
        ([np.zeros(2)], InvalidArgument),
        ({"../w": np.zeros(2)}, InvalidInput),
        ({3: np.zeros(2)}, InvalidInput),
    ],
)
def test_parameters_that_no_model_can_have_are_refused_here(parameters, error):
    """Nothing is sent."""
    with pytest.raises(error):
        model_calls.create_model("m", parameters, stepwell.SGD(0.5), None, "reject", exist_ok=False)


@pytest.mark.parametrize(
    "call",
    [
        lambda mode: model_calls.create_model(
            "m", PARAMETERS, stepwell.SGD(0.5), mode, "reject", exist_ok=False
        ),
        lambda mode: model_calls.set_consistency("m", mode),
    ],
)
@pytest.mark.parametrize("mode", ["sync", {"mode": "sync"}, stepwell.Sync])
def test_a_mode_is_a_value_and_not_a_word(call, mode):
    """The sentence names them all and shows the form."""
    sentence = r"Async, Bounded, Buffered, Quorum or Sync, such as stepwell.Sync\(workers=4\)"
    with pytest.raises(InvalidArgument, match=sentence):
        call(mode)


def test_a_mode_is_changed_by_its_json():
    """As `create_model` sends it."""
    call = model_calls.set_consistency("digits", stepwell.Quorum(4, quorum=3))

    assert (call.method, call.path) == ("PATCH", "/v1/models/digits/consistency")
    assert call.json == stepwell.Quorum(4, quorum=3).to_json()


def test_hyperparameters_are_sent_as_plain_numbers():
    """NumPy's numbers and schedules have a JSON form."""
    schedule = stepwell.schedules.ExponentialDecay(0.5, 10, 0.5)

    call = model_calls.set_hyperparameters(
        "digits", {"learning_rate": schedule, "clipnorm": np.float32(0.5), "beta_1": np.array(0.25)}
    )

    assert (call.method, call.path) == ("PATCH", "/v1/models/digits/optimizer")
    assert call.json == {"learning_rate": schedule.serialize(), "clipnorm": 0.5, "beta_1": 0.25}
    assert all(type(value) in (float, dict) for value in call.json.values())


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), lambda: 0.5])
def test_hyperparameters_without_a_json_form_are_refused_here(value):
    """The sentence names the hyperparameter."""
    with pytest.raises(InvalidArgument, match="`learning_rate`"):
        model_calls.set_hyperparameters("digits", {"learning_rate": value})


def test_an_overwrite_has_all_tensors():
    """Missing ones are named; twice would undo what was pushed in between, so it is sent once."""
    call = model_calls.overwrite("digits", LAYOUT, PARAMETERS)

    assert (call.method, call.can_repeat) == ("PUT", False)
    assert header_of(call)["layout"] == LAYOUT.hash
    with pytest.raises(LayoutMismatch, match="Missing: 'd', 'b'"):
        model_calls.overwrite("digits", LAYOUT, {"w": PARAMETERS["w"]})
