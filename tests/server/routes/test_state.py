"""State that was trained elsewhere: taken over whole, or refused whole."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell_core.layout import Layout, Tensor

from tests.server.calls import (
    LAYOUT,
    MOMENTUM,
    MSGPACK,
    SGD,
    Worker,
    assert_problem,
    create,
    filled,
    image,
    packed,
    payload,
    pull,
)

ADAM = {"class_name": "Adam", "config": {"learning_rate": 0.5}}
HALF = {"dense/kernel": np.full((3, 4), 0.5).tolist(), "bias": [0.5] * 4}


@pytest.fixture
def path(http):
    """A model with one slot, after one push."""
    return trained_model(http)


@pytest.fixture(scope="module")
def untouched(http):
    """The same, for tests that change nothing; and all that can be seen of it."""
    path = trained_model(http)
    return path, seen(http, path)


def trained_model(http):
    """Create a model with one slot and push to it."""
    path = create(http, optimizer=MOMENTUM)
    Worker(http, path).push(2.0)
    return path


def seen(http, path):
    """Return all that can be seen of a model, checkpoints too."""
    return image(http, path), http.get(f"{path}/checkpoints").json()


def put(http, path, header, *bins):
    """Send an import as a msgpack stream."""
    headers = {"Content-Type": MSGPACK}
    content = packed({"layout": LAYOUT.hash, **header}, *bins)
    return http.put(f"{path}/state", content=content, headers=headers)


def slot(http, path, name, tensor="bias"):
    """Return the elements of a slot's tensor."""
    query = {"slot": name}
    return http.get(f"{path}/parameters", params=query).json()["parameters"][tensor]


def test_parameters_slots_and_the_number_of_steps_are_taken_over(http, path):
    """As a new history, which a checkpoint holds already; older sessions are told."""
    before, worker = http.get(path).json(), Worker(http, path)

    answer = put(
        http,
        path,
        {"parameters": True, "slots": ["momentum"], "iterations": 7},
        payload(filled(3.0)) + payload(filled(4.0)),
    )

    after = http.get(path).json()
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"incarnation": after["incarnation"], "version": after["version"]}
    assert after["incarnation"] != before["incarnation"]
    assert after["version"] == before["version"] + 1
    assert after["iterations"] == 7
    assert (pull(http, path)["dense/kernel"] == 3.0).all()
    assert slot(http, path, "momentum") == [4.0] * 4
    newest = http.get(f"{path}/checkpoints").json()["checkpoints"][-1]
    assert (newest["incarnation"], newest["version"]) == (after["incarnation"], after["version"])
    assert_problem(worker.try_push(), 409, "stale_incarnation")


def test_the_same_as_json(http, path):
    """With the tensors as nested lists."""
    answer = http.put(
        f"{path}/state", json={"parameters": HALF, "slots": {"momentum": HALF}, "iterations": 9}
    )

    assert answer.status_code == 200, answer.text
    assert (pull(http, path)["bias"] == 0.5).all()
    assert slot(http, path, "momentum") == [0.5] * 4
    assert http.get(path).json()["iterations"] == 9


def test_what_is_not_named_stays(http, path):
    """Slots alone, or the number of steps alone."""
    parameters = pull(http, path)

    put(http, path, {"slots": ["momentum"]}, payload(filled(4.0)))
    put(http, path, {"iterations": 5})

    assert {name: array.tobytes() for name, array in pull(http, path).items()} == {
        name: array.tobytes() for name, array in parameters.items()
    }
    assert slot(http, path, "momentum") == [4.0] * 4
    assert http.get(path).json()["iterations"] == 5


def test_slots_come_in_the_order_of_the_header(http):
    """Each under its own name, whichever is first."""
    path = create(http, optimizer=ADAM)

    answer = put(
        http, path, {"slots": ["velocity", "momentum"]}, payload(filled(1.0)), payload(filled(2.0))
    )

    assert answer.status_code == 200, answer.text
    assert slot(http, path, "velocity") == [1.0] * 4
    assert slot(http, path, "momentum") == [2.0] * 4


def test_what_one_model_exports_another_takes_over_and_both_train_on_alike(http):
    """Pulled slot by slot, imported, and the next pushes have the same effect, bit by bit."""
    source, target = (create(http, optimizer=ADAM) for _ in range(2))
    trained = Worker(http, source)
    for value in (1.0, -2.0, 0.5):
        trained.push(value)
    slots = [pull_slot(http, source, name) for name in ("momentum", "velocity")]

    answer = put(
        http,
        target,
        {"parameters": True, "slots": ["momentum", "velocity"], "iterations": 3},
        payload(pull(http, source)) + b"".join(map(payload, slots)),
    )
    fresh = Worker(http, target)
    for worker in (trained, fresh):
        worker.push(0.25)

    assert answer.status_code == 200, answer.text
    for name in LAYOUT.segments:
        assert pull(http, target)[name].tobytes() == pull(http, source)[name].tobytes()


def pull_slot(http, path, name):
    """Return the tensors of a slot."""
    values = http.get(f"{path}/parameters", params={"slot": name}).json()["parameters"]
    return {t.name: np.array(values[t.name], t.dtype).reshape(t.shape) for t in LAYOUT.tensors}


OTHER_LAYOUT = Layout([Tensor("w", (4,), "float32")]).hash
ONES = payload(filled(1.0))


@pytest.mark.parametrize(
    ("header", "bins", "status", "code"),
    [
        ({"parameters": True}, [ONES[:-1]], 422, "payload_size_mismatch"),
        ({"parameters": True}, [ONES + b"\0"], 422, "payload_size_mismatch"),
        ({"parameters": True}, [], 422, "payload_size_mismatch"),
        ({"parameters": True, "slots": ["momentum"]}, [ONES], 422, "payload_size_mismatch"),
        ({"iterations": 1}, [ONES], 422, "payload_size_mismatch"),
        ({"parameters": True, "layout": OTHER_LAYOUT}, [ONES], 422, "layout_mismatch"),
        ({"parameters": True, "layout": "x" * 65}, [ONES], 422, "invalid_input"),
        ({"parameters": True, "layout": None}, [ONES], 422, "invalid_input"),
        ({"parameters": 1}, [ONES], 422, "invalid_input"),
        ({"slots": "momentum"}, [ONES], 422, "invalid_input"),
        ({"slots": ["velocity"]}, [ONES], 422, "invalid_input"),
        ({"slots": ["momentum", "momentum"]}, [ONES, ONES], 422, "invalid_input"),
        ({"slots": ["momentum", "average"]}, [ONES, ONES], 422, "invalid_input"),
        ({"slots": ["../momentum"]}, [ONES], 422, "invalid_input"),
        ({"slots": ["m\u00f6mentum"]}, [ONES], 422, "invalid_input"),
        ({"slots": ["m" * 100_000]}, [ONES], 422, "invalid_input"),
        ({"slots": ["momentum"] * 17}, [], 422, "invalid_input"),
        ({"iterations": -1}, [], 422, "invalid_input"),
        ({"iterations": 1 << 63}, [], 422, "invalid_input"),
        ({"iterations": 1.5}, [], 422, "invalid_input"),
        ({"iterations": True}, [], 422, "invalid_input"),
        ({"protocol": 2}, [], 422, "invalid_input"),
        ({"shape": [1 << 62]}, [], 422, "invalid_input"),
    ],
)
def test_an_import_that_does_not_fit_changes_nothing(http, untouched, header, bins, status, code):
    """Not the half of it that would, nor a session, nor a checkpoint; the answer is short."""
    path, before = untouched

    answer = put(http, path, header, *bins)

    assert_problem(answer, status, code)
    assert len(answer.content) < 4096
    assert seen(http, path) == before


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"parameters": {}}, "layout_mismatch"),
        ({"parameters": {"bias": [0.5] * 4}}, "layout_mismatch"),
        ({"parameters": {**HALF, "other": [1.0]}}, "unknown_tensor"),
        ({"parameters": {**HALF, "bias": [0.5] * 3}}, "shape_mismatch"),
        ({"parameters": {**HALF, "bias": ["a"] * 4}}, "dtype_mismatch"),
        ({"parameters": {**HALF, "bias": [True] * 4}}, "dtype_mismatch"),
        ({"parameters": {**HALF, "bias": [10**400] * 4}}, "invalid_input"),
        ({"parameters": HALF, "slots": {"momentum": {}}}, "layout_mismatch"),
        ({"parameters": HALF, "slots": {"momentum": {"bias": [0.5] * 4}}}, "layout_mismatch"),
        ({"parameters": HALF, "slots": {"velocity": HALF}}, "invalid_input"),
        ({"parameters": HALF, "slots": {"momentum": HALF, "..": HALF}}, "invalid_input"),
        ({"parameters": HALF, "slots": ["momentum"]}, "invalid_input"),
        ({"parameters": [1.0]}, "invalid_input"),
        ({"parameters": HALF, "iterations": "7"}, "invalid_input"),
        ({"parameters": HALF, "iterations": -1}, "invalid_input"),
        ({"parameter": HALF}, "invalid_input"),
    ],
)
def test_a_json_import_that_does_not_fit_changes_nothing(http, untouched, fields, code):
    """The same for people."""
    path, before = untouched

    answer = http.put(f"{path}/state", json=fields)

    assert_problem(answer, 422, code)
    assert seen(http, path) == before


@pytest.mark.parametrize(
    ("content", "media_type", "status", "code"),
    [
        (b"", MSGPACK, 400, "malformed_message"),
        (b"\xc1", MSGPACK, 400, "malformed_message"),
        (b"\x93\x01\x02\x03", MSGPACK, 400, "malformed_message"),
        (b"{", "application/json", 400, "malformed_message"),
        (b"[]", "application/json", 400, "malformed_message"),
        (b'{"iterations": NaN}', "application/json", 400, "malformed_message"),
        (b"[" * 50_000, "application/json", 400, "malformed_message"),
        (b"iterations=7", "text/plain", 415, "unsupported_media_type"),
    ],
)
def test_what_is_no_import_at_all_is_refused(http, untouched, content, media_type, status, code):
    """By its form, before anything of it is looked at."""
    path, before = untouched

    answer = http.put(f"{path}/state", content=content, headers={"Content-Type": media_type})

    assert_problem(answer, status, code)
    assert seen(http, path) == before


@pytest.mark.parametrize("content", [{}, {"parameters": None, "slots": {}, "iterations": None}])
def test_an_import_of_nothing_is_refused(http, untouched, content):
    """It would cut the history, and all workers off, for nothing."""
    path, before = untouched

    assert_problem(http.put(f"{path}/state", json=content), 422, "invalid_input")
    assert_problem(put(http, path, {}), 422, "invalid_input")
    assert seen(http, path) == before


def test_a_model_without_slots_takes_none(http):
    """And says so."""
    path = create(http, optimizer=SGD)

    document = assert_problem(put(http, path, {"slots": ["momentum"]}, ONES), 422, "invalid_input")

    assert document["expected"] == []
    assert http.put(f"{path}/state", json={"parameters": HALF}).status_code == 200


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nobody", "model_not_found"),
        ("%2e%2e", "invalid_name"),
        ("m" * 300, "invalid_name"),
        ("m%C3%B6dell", "invalid_name"),
        ("MODEL", "invalid_name"),
        ("a%2Fb", "route_not_found"),
    ],
)
def test_a_model_that_does_not_exist_takes_no_state(http, name, code):
    """Whatever its name looks like."""
    answer = http.put(f"/v1/models/{name}/state", json={"iterations": 1})

    assert_problem(answer, 404 if code.endswith("found") else 422, code)


def test_state_cannot_be_read_where_it_is_written(http, untouched):
    """It comes with the parameters, slot by slot."""
    assert_problem(http.get(f"{untouched[0]}/state"), 405, "method_not_allowed")
