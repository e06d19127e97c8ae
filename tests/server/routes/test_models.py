"""Models: created, listed, described, deleted."""

from __future__ import annotations

import pytest
from stepwell_core.layout import Layout, Tensor
from stepwell_server import memory

from tests.server.calls import (
    LAYOUT,
    MSGPACK,
    SGD,
    Worker,
    assert_problem,
    create,
    definition,
    filled,
    image,
    new_name,
    packed,
    payload,
    pull,
    unpacked,
)


def post(http, header, *bins, accept="application/json"):
    """Send a msgpack stream that creates a model."""
    headers = {"Content-Type": MSGPACK, "Accept": accept}
    return http.post("/v1/models", content=packed(header, *bins), headers=headers)


def names(http) -> set[str]:
    """Return the names of all models."""
    return {model["name"] for model in http.get("/v1/models").json()["models"]}


def test_a_model_is_described_as_it_was_created(http):
    """With where it is now: incarnation and version."""
    name = new_name()

    answer = post(http, definition(name), payload(filled(1.0)))

    described = answer.json()
    assert answer.status_code == 201
    assert described["created"] is True
    assert described["name"] == name
    assert described["tensors"] == LAYOUT.to_json()
    assert described["layout"] == LAYOUT.hash
    assert (described["parameters"], described["bytes"]) == (16, 80)
    assert (described["version"], described["iterations"]) == (0, 0)
    assert len(described["incarnation"]) == 32
    del described["created"]
    assert http.get(f"/v1/models/{name}").json() == described


def test_a_model_is_created_in_json_with_values_or_with_zeros(http):
    """What a person types."""
    lists = {name: array.tolist() for name, array in filled(2.0).items()}
    given, zeros, streamed = new_name(), new_name(), new_name()

    http.post("/v1/models", json={**definition(given), "values": lists})
    http.post("/v1/models", json=definition(zeros))
    post(http, {**definition(streamed), "has_values": False})

    assert (pull(http, f"/v1/models/{given}")["bias"] == 2.0).all()
    assert (pull(http, f"/v1/models/{zeros}")["bias"] == 0.0).all()
    assert (pull(http, f"/v1/models/{streamed}")["bias"] == 0.0).all()


def test_a_new_model_has_a_checkpoint_from_the_beginning(http):
    """Before 201 is answered it is on the disk."""
    path = create(http)

    checkpoints = http.get(f"{path}/checkpoints").json()["checkpoints"]

    assert [checkpoint["version"] for checkpoint in checkpoints] == [0]


def test_models_are_listed_by_name_without_their_tensors(http):
    """The list stays short; msgpack is answered to who asks."""
    first, second = sorted([new_name(), new_name()])
    create(http, second)
    create(http, first)

    listed = http.get("/v1/models").json()["models"]
    same = unpacked(http.get("/v1/models", headers={"Accept": MSGPACK}).content)[0]["models"]

    found = [model["name"] for model in listed]
    assert found == sorted(found)
    assert {first, second} <= set(found)
    assert all("tensors" not in model for model in listed)
    assert same == listed


def test_a_model_of_the_same_name_is_refused_or_opened(http):
    """`exist_ok` opens it if it is the same; the values that came are ignored."""
    name = new_name()
    path = create(http, name)
    Worker(http, path).push()
    before = image(http, path)

    refused = post(http, definition(name), payload(filled(5.0)))
    opened = post(http, definition(name, exist_ok=True), payload(filled(5.0)))

    assert_problem(refused, 409, "model_exists")
    assert opened.status_code == 200
    assert opened.json()["created"] is False
    assert image(http, path) == before


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"optimizer": {"class_name": "SGD", "config": {"learning_rate": 0.25}}}, "optimizer"),
        ({"optimizer": {"class_name": "Adam", "config": {}}}, "optimizer"),
        ({"consistency": {"mode": "sync", "workers": 2}}, "consistency"),
        ({"on_nonfinite": "drop"}, "on_nonfinite"),
        ({"exclude_from_weight_decay": ["bias"]}, "exclude_from_weight_decay"),
        ({"tensors": [{"name": "x", "shape": [20], "dtype": "float32"}]}, "tensors"),
    ],
)
def test_a_model_that_exists_with_another_definition_is_not_opened(http, fields, difference):
    """The answer says in what they differ."""
    name = new_name()
    create(http, name)

    answer = post(http, {**definition(name, exist_ok=True), **fields}, b"\0" * 80)

    assert assert_problem(answer, 409, "model_differs")["differences"] == [difference]


TENSOR = {"name": "w", "shape": [2], "dtype": "float32"}
DEFINITIONS = {
    "no name": ({"name": None}, "invalid_name"),
    "a name with a slash": ({"name": "a/b"}, "invalid_name"),
    "a name that is a path": ({"name": ".."}, "invalid_name"),
    "a hidden name": ({"name": ".tmp-1"}, "invalid_name"),
    "an upper-case name": ({"name": "Digits"}, "invalid_name"),
    "a long name": ({"name": "a" * 65}, "invalid_name"),
    "a name with a line break": ({"name": "a\n"}, "invalid_name"),
    "the name of a file of the data folder": ({"name": "tokens.json"}, "invalid_name"),
    "a number as name": ({"name": 7}, "invalid_name"),
    "no tensors": ({"tensors": []}, "invalid_input"),
    "tensors that are no list": ({"tensors": {"a": 1}}, "invalid_input"),
    "a tensor twice": ({"tensors": [TENSOR, TENSOR]}, "invalid_input"),
    "a tensor that is a path": ({"tensors": [{**TENSOR, "name": "a/../b"}]}, "invalid_name"),
    "an absolute tensor": ({"tensors": [{**TENSOR, "name": "/a"}]}, "invalid_name"),
    "a tensor without name": ({"tensors": [{**TENSOR, "name": ""}]}, "invalid_name"),
    "a tensor with control characters": ({"tensors": [{**TENSOR, "name": "\x00"}]}, "invalid_name"),
    "integers": ({"tensors": [{**TENSOR, "dtype": "int32"}]}, "dtype_mismatch"),
    "objects": ({"tensors": [{**TENSOR, "dtype": "object"}]}, "dtype_mismatch"),
    "a negative size": ({"tensors": [{**TENSOR, "shape": [-1]}]}, "shape_mismatch"),
    "a size that is no number": ({"tensors": [{**TENSOR, "shape": ["2"]}]}, "shape_mismatch"),
    "too many dimensions": ({"tensors": [{**TENSOR, "shape": [1] * 100}]}, "shape_mismatch"),
    "an unknown optimizer": ({"optimizer": {"class_name": "os.system", "config": {}}}, None),
    "an optimizer argument that is none": (
        {"optimizer": {"class_name": "SGD", "config": {"leaning_rate": 1}}},
        None,
    ),
    "an optimizer value out of range": (
        {"optimizer": {"class_name": "SGD", "config": {"momentum": 2.0}}},
        None,
    ),
    "an unknown mode": ({"consistency": {"mode": "hope"}}, "invalid_argument"),
    "sync of nobody": ({"consistency": {"mode": "sync", "workers": 0}}, "invalid_argument"),
    "an unknown rule for NaN": ({"on_nonfinite": "pray"}, "invalid_argument"),
    "an excluded tensor that is none": ({"exclude_from_weight_decay": ["x"]}, "unknown_tensor"),
    "a field that is none": ({"durability": "always"}, "invalid_input"),
    "a field that the server sets": ({"created_with": SGD}, "invalid_input"),
    "exist_ok that is no truth value": ({"exist_ok": "yes"}, "invalid_input"),
    "has_values that is no truth value": ({"has_values": 1}, "invalid_input"),
    "another protocol": ({"protocol": 2}, "invalid_input"),
}


@pytest.mark.parametrize(("fields", "code"), DEFINITIONS.values(), ids=DEFINITIONS)
def test_a_definition_that_breaks_a_rule_creates_nothing(http, fields, code):
    """Neither a model nor a folder; optimizers say themselves what is wrong."""
    before = names(http)

    answer = post(http, {**definition(new_name()), **fields}, b"\0" * 80)

    assert_problem(answer, 422, code or answer.json()["code"])
    assert names(http) == before


@pytest.mark.parametrize("bins", [(), (b"\0" * 79,), (b"\0" * 81,), (b"\0" * 80, b"\0")])
def test_initial_values_of_another_size_create_nothing(http, bins):
    """All tensors, exactly."""
    name = new_name()

    answer = post(http, definition(name), *bins)

    assert_problem(answer, 422, "payload_size_mismatch")
    assert name not in names(http)
    create(http, name)


@pytest.mark.parametrize("shape", [[1 << 37], [1 << 20, 1 << 18]])
def test_a_model_that_does_not_fit_is_507_before_memory_is_taken(http, shape):
    """With the arithmetic."""
    fields = definition(new_name(), tensors=[{"name": "w", "shape": shape, "dtype": "float64"}])

    for answer in (
        http.post("/v1/models", json=fields),
        post(http, {**fields, "has_values": False}),
        post(http, fields, b"\0" * 80),
    ):
        document = assert_problem(answer, 507, "does_not_fit")
        assert document["needed"] == 2 * 8 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        assert document["available"] < document["needed"]


def test_what_a_slot_needs_is_counted(http, monkeypatch):
    """Adam needs four arrays of the model's size, SGD two."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 3 * 80)
    adam = {"class_name": "Adam", "config": {}}

    fits = http.post("/v1/models", json=definition(new_name()))
    answer = http.post("/v1/models", json=definition(new_name(), optimizer=adam))

    assert fits.status_code == 201
    assert assert_problem(answer, 507, "does_not_fit")["needed"] == 4 * 80


def test_a_deleted_model_is_gone_with_its_folder(http, server):
    """Its name is free; what a new one of that name is, the old one's session cannot push to."""
    name = new_name()
    path = create(http, name)
    worker = Worker(http, path)
    folder = server.application.registry.get(name).folder.path

    answer = http.delete(path)

    assert (answer.status_code, answer.content) == (204, b"")
    assert not folder.exists()
    assert_problem(http.get(path), 404, "model_not_found")
    assert_problem(http.delete(path), 404, "model_not_found")
    create(http, name)
    assert_problem(worker.try_push(), 409, "stale_incarnation")


def test_scalars_and_empty_tensors_are_tensors(http):
    """A model may have them, and their gradients are pushed like others."""
    layout = Layout(
        [
            Tensor("scalar", (), "float32"),
            Tensor("empty", (0, 3), "float32"),
            Tensor("w", (2,), "float64"),
        ]
    )
    path = create(http, layout=layout, values=filled(1.0, layout))

    Worker(http, path, layout=layout).push(2.0)

    pulled = pull(http, path, layout)
    assert pulled["scalar"].item() == 0.0
    assert pulled["empty"].shape == (0, 3)
    assert (pulled["w"] == 0.0).all()
