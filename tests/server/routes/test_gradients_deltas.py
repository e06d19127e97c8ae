"""Pushes of kind "delta", as a stranger sends them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.server.calls import (
    MOMENTUM,
    MSGPACK,
    Worker,
    assert_problem,
    create,
    filled,
    image,
    pull,
    unpacked,
)
from tests.server.routes.test_workers import sync, waiting_push

AVERAGING = {"class_name": "SGD", "config": {"learning_rate": 1.0}}


def test_a_delta_is_added_to_the_parameters(http):
    """With learning rate 1 they are the worker's own afterwards."""
    path = create(http, optimizer=AVERAGING)
    worker = Worker(http, path)
    delta = {"dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "bias": np.arange(4.0)}

    result = worker.push(delta, kind="delta", version=0)

    assert (result["outcome"], result["version"], result["staleness"]) == ("applied", 1, 0)
    for name, array in pull(http, path).items():
        np.testing.assert_array_equal(array, 1 + delta[name])


def test_a_delta_in_json_is_the_same_push(http):
    """The tensors are called `gradients` there too; the kind says what they are."""
    path = create(http, optimizer=AVERAGING)
    worker = Worker(http, path)
    tensors = {name: array.tolist() for name, array in filled(2.0).items()}
    body = {**worker.header(kind="delta"), "gradients": tensors}

    results = [http.post(f"{path}/gradients", json=body).json() for _ in range(2)]

    assert [result["duplicate"] for result in results] == [False, True]
    for array in pull(http, path).values():
        assert (array == 3.0).all()
    other = http.post(f"{path}/gradients", json={**body, "kind": "gradient"})
    assert_problem(other, 422, "payload_mismatch")


def test_a_delta_goes_through_the_optimizer_as_its_negative_does(http):
    """Parameters and slots have the same bytes."""
    one, other = (create(http, optimizer=MOMENTUM) for _ in range(2))
    worker, plain = Worker(http, one), Worker(http, other)

    for value in (0.3, 0.0, -0.7):
        worker.push(value, kind="delta")
        plain.push({name: -array for name, array in filled(value).items()})

    assert payloads(http, one) == payloads(http, other)


def payloads(http, path):
    """Return the bytes of the parameters and of the slot, without what names their model."""
    answers = [
        http.get(f"{path}/parameters", params=query, headers={"Accept": MSGPACK})
        for query in ({}, {"slot": "momentum"})
    ]
    return [unpacked(answer.content)[1] for answer in answers]


@pytest.mark.parametrize("kinds", [("gradient", "delta"), ("delta", "gradient")])
def test_the_same_bytes_as_another_kind_are_refused_with_nothing_changed(http, kinds):
    """A repetition is read without being kept, and its kind is looked at too."""
    path = create(http)
    worker = Worker(http, path)
    first = worker.try_push(kind=kinds[0]).json()
    before = image(http, path)

    assert_problem(worker.try_push(kind=kinds[1]), 422, "payload_mismatch")

    assert image(http, path) == before
    assert worker.try_push(kind=kinds[0]).json() == {**first, "duplicate": True}


@pytest.mark.parametrize("reduction", ["order", "arrival"])
def test_a_step_has_pushes_of_one_kind(http, reduction):
    """Another is 422 `mixed_kinds`; the same number, as the right kind, completes the step."""
    path = create(http, optimizer=AVERAGING, consistency=sync(2, reduction=reduction))
    first, second = Worker(http, path, "a"), Worker(http, path, "b")

    with ThreadPoolExecutor(1) as pool:
        waits = waiting_push(pool, first, 1.0, kind="delta")
        document = assert_problem(second.try_push(5.0), 422, "mixed_kinds")
        other = assert_problem(first.try_push(1.0), 422, "payload_mismatch")
        result = second.push(3.0, kind="delta")

        assert waits.result(60).json()["version"] == result["version"] == 1
    assert (document["expected"], document["received"]) == ("delta", "gradient")
    assert "nothing changed" in document["detail"]
    assert other["expected"].startswith("delta:")
    for array in pull(http, path).values():
        assert (array == 3.0).all()
