"""The optimizer, looked at and changed while the model is trained."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.calls import (
    MOMENTUM,
    Worker,
    assert_problem,
    create,
    definition,
    filled,
    packed,
    pull,
)

DECAY = {
    "class_name": "SGD",
    "config": {
        "learning_rate": {
            "class_name": "ExponentialDecay",
            "config": {"initial_learning_rate": 0.5, "decay_steps": 10, "decay_rate": 0.9},
        }
    },
}


def rate(http, path) -> float:
    """Return the learning rate as it is."""
    return http.get(f"{path}/optimizer").json()["config"]["learning_rate"]


def test_a_new_learning_rate_is_used_from_the_next_step_on(http):
    """It adds no version."""
    path = create(http, values=filled(0.0))
    worker = Worker(http, path)
    worker.push(-1.0)

    answer = http.patch(f"{path}/optimizer", json={"learning_rate": 2})
    worker.push(-1.0)

    assert answer.json()["config"]["learning_rate"] == 2.0
    assert (pull(http, path)["bias"] == 2.5).all()
    assert http.get(path).json()["version"] == 2


def test_hyperparameters_are_changed_with_msgpack_too(http):
    """A header without payload."""
    path = create(http)
    headers = {"Content-Type": "application/msgpack"}

    answer = http.patch(
        f"{path}/optimizer", content=packed({"learning_rate": 0.125}), headers=headers
    )

    assert answer.status_code == 200
    assert rate(http, path) == 0.125


@pytest.mark.parametrize(
    "body",
    [
        {"learning_rate": 10**400},
        {"learning_rate": "fast"},
        {"momentum": 2.0},
        {"momentum": 0.0},  # it would take the slot away
        {"leaning_rate": 0.1},
        {"gradient_accumulation_steps": 4},
        {"learning_rate": None},
    ],
)
def test_a_value_that_breaks_a_rule_changes_nothing(http, body):
    """Neither may the slots change while training."""
    path = create(http, optimizer=MOMENTUM)
    before = http.get(f"{path}/optimizer")

    answer = http.patch(
        f"{path}/optimizer",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )

    assert_problem(answer, 422, answer.json()["code"])
    after = http.get(f"{path}/optimizer")
    assert (after.json(), after.headers["etag"]) == (before.json(), before.headers["etag"])


def test_a_learning_rate_over_a_schedule_is_refused(http):
    """As Keras does."""
    path = create(http, optimizer=DECAY)

    assert_problem(
        http.patch(f"{path}/optimizer", json={"learning_rate": 0.1}), 422, "invalid_argument"
    )


def test_with_if_match_the_optimizer_is_changed_only_as_it_was_seen(http):
    """Two who change it at once do not undo each other's work unseen."""
    path = create(http)
    tag = http.get(f"{path}/optimizer").headers["etag"]

    first = http.patch(
        f"{path}/optimizer", json={"learning_rate": 0.125}, headers={"If-Match": tag}
    )
    second = http.patch(f"{path}/optimizer", json={"learning_rate": 0.2}, headers={"If-Match": tag})

    assert first.status_code == 200
    assert first.headers["etag"] != tag
    assert_problem(second, 412, "precondition_failed")
    assert rate(http, path) == 0.125


def test_without_if_match_changes_at_the_same_time_are_all_made(http):
    """None is refused; the last one stands."""
    path = create(http)
    values = [0.5 + number / 64 for number in range(8)]

    def change(value):
        return http.patch(f"{path}/optimizer", json={"learning_rate": value}).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(change, values)) == {200}
    assert rate(http, path) in values


def test_a_changed_model_is_still_the_one_that_was_created(http):
    """`exist_ok` compares with the optimizer at creation, and restoring brings the old one back."""
    path = create(http, "changed")
    checkpoint = http.get(f"{path}/checkpoints").json()["checkpoints"][0]["id"]
    http.patch(f"{path}/optimizer", json={"learning_rate": 0.1})

    opened = http.post("/v1/models", json=definition("changed", exist_ok=True))
    http.post(f"{path}/checkpoints/{checkpoint}/restore")

    assert opened.status_code == 200
    assert rate(http, path) == 0.5
