"""Groups and state tensors through a real server, over the wire and in shared memory."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import stepwell
from stepwell import errors

from tests.servers import served

PARAMETERS = {"body": np.zeros(3, np.float32), "head": np.zeros(2, np.float32)}
STATE = {"mean": np.zeros(2, np.float32), "count": np.zeros((), np.float64)}
ONES = {name: np.ones_like(array) for name, array in PARAMETERS.items()}
GROUPS = [
    stepwell.ParameterGroup(
        "head", ("head",), hyperparameters={"learning_rate": stepwell.PerPush()}
    )
]


def create(client: stepwell.Client, name: str, **options: object) -> stepwell.Model:
    """Create a model with a group and state."""
    return client.create_model(
        name, PARAMETERS, optimizer=stepwell.SGD(0.5), groups=GROUPS, state=STATE, **options
    )


@pytest.mark.parametrize("transport", ["auto", "http"])
def test_a_push_says_rates_and_values(server, transport: str) -> None:
    """Both have their effect in the same step, and come back with the parameters."""
    # Arrange
    state = {"mean": np.array([3, 4], np.float32), "count": np.array(7.0)}

    # Act
    with stepwell.Client(server.url, transport=transport) as client:
        model = create(client, f"grouped-{transport}")
        with model.worker("w") as worker:
            after = worker.push_pull(
                ONES, state=state, hyperparameters={"head/learning_rate": 0.25}
            )

    # Assert
    assert after["body"].tolist() == [-0.5] * 3
    assert after["head"].tolist() == [-0.25] * 2
    assert after["mean"].tolist() == [3, 4]
    assert after["count"] == 7


@pytest.mark.parametrize("transport", ["auto", "http"])
def test_a_delta_is_of_what_is_optimized_and_values_go_along(server, transport: str) -> None:
    """They are named in `state`, also those that are to stay; else they are asked for."""
    # Arrange
    options = {"hyperparameters": {"head/learning_rate": 0.5}}
    mean = np.array([3, 4], np.float32)

    # Act
    with stepwell.Client(server.url, transport=transport) as client:
        model = create(client, f"local-{transport}")
        with model.worker("w") as worker:
            pulled = worker.pull()
            local = {name: pulled[name] + 2 for name in PARAMETERS}
            with pytest.raises(errors.LayoutMismatch, match=r"Missing: .*'count'"):
                worker.push_delta(local, state={"mean": mean}, **options)
            worker.push_delta(local, state={"mean": mean, "count": None}, **options)
        after = model.pull()

    # Assert
    assert after["body"].tolist() == [1.0] * 3
    assert after["head"].tolist() == [1.0] * 2
    assert after["mean"].tolist() == [3, 4]
    assert after["count"] == 0


def test_gathered_values_outlive_a_checkpoint_and_a_crash(tmp_path) -> None:
    """They were acknowledged, so the step that they wait for has them."""
    # Arrange
    options = {"consistency": stepwell.Buffered(3)}
    said = {"hyperparameters": {"head/learning_rate": 0.5}}
    with served(tmp_path) as server, stepwell.Client(server.url) as client:
        model = create(client, "m", **options)
        with model.worker("w") as worker:
            worker.push(ONES, state={"mean": np.array([1, 2], np.float32)}, **said)
            model.checkpoint()
            worker.push(ONES, state={"count": np.array(5.0)}, **said)
            server.kill()

    # Act
    with served(tmp_path) as server, stepwell.Client(server.url) as client:
        model = client.model("m")
        before = model.pull()
        with model.worker("w") as worker:
            result = worker.push(ONES, **said)
        after = model.pull()

    # Assert
    assert before["count"] == 0
    assert result.outcome == "applied"
    assert (after["mean"].tolist(), after["count"]) == ([1, 2], 5)
    assert after["body"].tolist() == [-0.5] * 3


def test_they_outlive_a_crash(tmp_path) -> None:
    """The journal has the values, and the rates that a step took."""
    # Arrange
    with served(tmp_path) as server, stepwell.Client(server.url) as client:
        worker = create(client, "m").worker("w").open()
        for count in range(3):
            worker.push(
                ONES,
                state={"count": np.array(float(count))},
                hyperparameters={"head/learning_rate": 0.1 * (1 + count)},
            )
        before = {name: array.tobytes() for name, array in worker.pull().items()}
        server.kill()

    # Act
    with served(tmp_path) as server, stepwell.Client(server.url) as client:
        after = {name: array.tobytes() for name, array in client.model("m").pull().items()}

    # Assert
    assert after == before


def test_the_same_definition_is_the_same_model(server) -> None:
    """Other groups or another state are another one."""
    # Act
    with stepwell.Client(server.url) as client:
        create(client, "same")
        create(client, "same", exist_ok=True)
        with pytest.raises(errors.ModelDiffers) as refusal:
            client.create_model(
                "same", {**PARAMETERS, **STATE}, optimizer=stepwell.SGD(0.5), exist_ok=True
            )

    # Assert
    assert refusal.value.details["differences"] == ["state", "groups"]


@pytest.mark.parametrize(
    ("gradients", "options", "sentence"),
    [
        ({**ONES, "mean": np.ones(2, np.float32)}, {}, "'mean' is state"),
        ({"head": ONES["head"]}, {"state": {"body": ONES["body"]}}, "'body' is optimized"),
        (ONES, {"state": {"head": ONES["head"]}}, "Received both: 'head'"),
        (ONES, {"state": {"mean": np.ones(3, np.float32)}}, r"value of 'mean' .*shape"),
        (ONES, {"state": {"mean": np.full(2, np.nan, np.float32)}}, "value of 'mean' has NaN"),
        (ONES, {"state": {"mean": np.ones(2)}}, "float64 for 'mean'"),
        (ONES, {"hyperparameters": {}}, "head/learning_rate"),
    ],
)
def test_what_does_not_fit_is_refused(server, gradients, options, sentence: str) -> None:
    """One sentence, and nothing changed."""
    # Arrange
    options = {"hyperparameters": {"head/learning_rate": 0.1}, **options}

    # Act / Assert
    with stepwell.Client(server.url) as client:
        model = create(client, "refusing", exist_ok=True)
        with model.worker("w") as worker, pytest.raises(errors.InvalidInput, match=sentence):
            worker.push(gradients, **options)
        assert model.describe()["version"] == 0


def test_a_person_with_json_can_do_it_too(server) -> None:
    """The values stand among the gradients, and `state` names them."""
    # Arrange
    with stepwell.Client(server.url) as client:
        model = create(client, "json")
        worker = model.worker("w").open()
        incarnation = model.describe()["incarnation"]
        push = {
            "worker": "w",
            "epoch": worker.epoch,
            "sequence": 0,
            "incarnation": incarnation,
            "gradients": {"body": [1, 1, 1], "mean": [5, 6]},
            "state": ["mean"],
            "hyperparameters": {"head/learning_rate": 0.1},
        }

        # Act
        answer = httpx.post(f"{server.url}/v1/models/json/gradients", json=push, trust_env=False)

        # Assert
        assert answer.status_code == 200, answer.text
        assert model.pull()["mean"].tolist() == [5, 6]
