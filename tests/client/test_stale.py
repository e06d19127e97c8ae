"""A worker whose model's history is cut, and one whose server is killed."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import stepwell
from stepwell.errors import InvalidArgument, StaleIncarnation

from tests import servers

ZEROS = {"w": np.zeros(1000, np.float32)}
TICK = {"w": -np.ones(1000, np.float32)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server."""
    with servers.hosted(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def client(server):
    """A client of it."""
    with stepwell.Client(server.url) as client:
        yield client


@pytest.fixture
def model(client, request):
    """A model that counts its pushes."""
    name = f"m{abs(hash(request.node.name)) % 10**9}"
    return client.create_model(name, ZEROS, optimizer=stepwell.SGD(1.0))


def count(model):
    """Return how many pushes the parameters have seen, the same in each element."""
    (value,) = set(model.pull()["w"].tolist())
    return value


def test_by_default_a_worker_is_told(model):
    """As an error that says what to do."""
    first = model.checkpoints()[0]
    with model.worker("w0") as worker:
        worker.push(TICK)
        model.restore(first)
        with pytest.raises(StaleIncarnation, match="Open a new session"):
            worker.push(TICK)


def test_a_push_of_another_history_is_not_taken_for_an_unresolved_one(client, model):
    """The model was created anew, and another process made a push with the same numbers."""
    worker = model.worker("w0").open()
    worker.push(TICK)
    session = worker._session
    session._is_unresolved, session._last_result = True, None  # push 1 left, and no answer came
    client.delete_model(model.name)
    again = client.create_model(model.name, ZEROS, optimizer=stepwell.SGD(1.0))
    with again.worker("w0") as other:
        for _ in range(3):
            other.push(TICK)

        found = worker.resolve()
        with pytest.raises(StaleIncarnation):
            worker.push(TICK)
        worker.close()

        assert found is None
        assert other.push(TICK).outcome == "applied", "its session was not closed by the other"
    assert count(again) == 4.0


def test_by_choice_it_goes_on_and_the_push_that_met_it_has_no_effect(model, caplog):
    """It belongs to a history that is no more; the next one counts."""
    first = model.checkpoints()[0]
    with model.worker("w0", on_stale="repull") as worker:
        worker.push(TICK)
        worker.push(TICK)
        model.restore(first)

        dropped = worker.push(TICK)
        before = count(model)
        after = worker.push(TICK)

    assert (dropped.outcome, dropped.duplicate) == ("dropped_stale", False)
    assert dropped.version == model.describe()["version"] - 1
    assert (before, after.outcome, after.staleness) == (0.0, "applied", 0)
    assert count(model) == 1.0
    assert "was cut" in caplog.text


def test_push_pull_gives_the_parameters_to_go_on_from(model):
    """So the training loop does not notice more than a warning."""
    first = model.checkpoints()[0]
    with model.worker("w0", on_stale="repull") as worker:
        worker.push_pull(TICK)
        model.restore(first)

        parameters = worker.push_pull(TICK)

        assert parameters["w"].tolist() == [0.0] * 1000
        assert worker.push_pull(TICK)["w"].tolist() == [1.0] * 1000


def test_a_pull_of_the_old_history_is_one_of_the_new(model):
    """Though it waited for a version that will not come."""
    first = model.checkpoints()[0]
    with model.worker("w0", on_stale="repull") as worker:
        worker.push(TICK)
        model.restore(first)

        parameters = worker.pull(min_version=2, wait_s=0.1)

        assert parameters["w"].tolist() == [0.0] * 1000


def test_another_choice_is_refused(model):
    """At once."""
    with pytest.raises(InvalidArgument, match=r"raise, repull\. Received: 'ignore'"):
        model.worker("w0", on_stale="ignore")


def test_the_asyncio_worker_has_the_same_choice(server):
    """The same flows."""

    async def scenario():
        async with stepwell.AsyncClient(server.url) as client:
            model = await client.create_model("async", ZEROS, optimizer=stepwell.SGD(1.0))
            first = await model.checkpoint(pinned=True)
            async with model.worker("w0", on_stale="repull") as worker:
                await worker.push(TICK)
                await model.restore(first)
                return (await worker.push(TICK)).outcome, await model.checkpoints()

    outcome, listed = asyncio.run(scenario())

    assert outcome == "dropped_stale"
    assert listed[1].pinned


@pytest.mark.parametrize("durability", ["everysec", "always"])
def test_workers_go_on_through_a_crash_without_an_error_and_each_push_counts_once(
    tmp_path, durability
):
    """Killed in the middle of a training loop, and started again on the same port."""
    flags = ("--durability", durability)
    server = servers.start(tmp_path, *flags)
    url = server.wait_for("ready")["address"]
    try:
        with stepwell.Client(url) as client:
            model = client.create_model("m", ZEROS, optimizer=stepwell.SGD(1.0))
            with model.worker("w0") as worker:
                for number in range(30):
                    if number % 10 == 5:
                        server.kill()
                        port = int(url.rpartition(":")[2])
                        server = servers.start(tmp_path, *flags, port=port)
                    assert worker.push(TICK).version == number + 1
            assert count(model) == 30.0
        server.wait_for("ready")
    finally:
        server.stop()


def test_state_made_elsewhere_is_taken_over_and_survives(client):
    """Parameters, slots and the number of steps; sessions are told."""
    model = client.create_model("imported", ZEROS, optimizer=stepwell.SGD(1.0, momentum=0.5))
    ones, twos = {"w": np.ones(1000, np.float32)}, {"w": np.full(1000, 2, np.float32)}
    worker = model.worker("w0").open()

    version = model.import_state(ones, {"momentum": twos}, iterations=9)

    assert version == model.describe()["version"] == 1
    assert model.describe()["iterations"] == 9
    assert count(model) == 1.0
    assert model.pull(slot="momentum")["w"].tolist() == [2.0] * 1000
    with pytest.raises(StaleIncarnation):
        worker.push(TICK)
    assert model.checkpoints()[-1].version == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((None, None, None), "none of them"),
        ((None, {"velocity": ZEROS}, None), "slots momentum"),
        ((None, {"momentum": {"other": ZEROS["w"]}}, None), "other"),
        (({"w": np.zeros(3, np.float32)}, None, None), "shape"),
        ((ZEROS, None, -1), "iterations"),
    ],
)
def test_state_that_does_not_fit_changes_nothing(client, arguments, match):
    """With what was expected."""
    model = client.create_model(
        "refusing", ZEROS, optimizer=stepwell.SGD(1.0, momentum=0.5), exist_ok=True
    )

    with pytest.raises(stepwell.errors.InvalidInput, match=match):
        model.import_state(*arguments)

    assert model.describe()["version"] == 0


def test_a_checkpoint_is_verified_pinned_forked_and_deleted(model):
    """Through the client."""
    made = model.checkpoint()
    model.pin(made)
    pinned = [entry.pinned for entry in model.checkpoints()]
    with pytest.raises(stepwell.errors.Conflict, match="unpin"):
        model.delete_checkpoint(made)
    model.pin(made, pinned=False)

    forked = model.fork(made, f"{model.name}-fork")
    with forked.worker("w0") as worker:
        worker.push(TICK)
    with pytest.raises(stepwell.errors.Conflict, match="write another first"):
        model.delete_checkpoint(made)
    model.checkpoint()
    model.delete_checkpoint(made)

    assert pinned == [False, True]
    assert model.verify(model.checkpoints()[0]).version == 0
    assert (count(model), count(forked)) == (0.0, 1.0)
    with pytest.raises(stepwell.errors.CheckpointNotFound):
        model.verify(made)
