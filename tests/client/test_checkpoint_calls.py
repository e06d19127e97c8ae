"""The calls of checkpoints and of state, by `Client` and `AsyncClient` alike."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import stepwell
from stepwell.errors import (
    CheckpointNotFound,
    Conflict,
    InvalidArgument,
    InvalidInput,
    InvalidName,
    ModelExists,
    ModelNotFound,
    StaleIncarnation,
)

from tests import servers
from tests.client.adapter import PATIENT
from tests.client.models import ONES, PARAMETERS, assert_same

SGD = stepwell.SGD(1.0, momentum=0.5)
TWOS = {name: array * 2 for name, array in ONES.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server in this process."""
    with servers.hosted(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def client(clients, server):
    """A client of either kind."""
    with clients.client(server.url, timeout=PATIENT) as client:
        yield client


@pytest.fixture
def model(client, request):
    """A model with a slot."""
    name = f"m{abs(hash(request.node.nodeid)) % 10**12}"
    return client.create_model(name, PARAMETERS, optimizer=SGD)


def test_both_clients_have_the_same_calls_with_the_same_arguments():
    """A call that one of them gets belongs to the other too."""
    pairs = [
        (stepwell.Client, stepwell.AsyncClient),
        (stepwell.Model, stepwell.AsyncModel),
        (stepwell.Worker, stepwell.AsyncWorker),
    ]
    for blocking, awaited in pairs:
        names = [name for name, _ in inspect.getmembers(blocking, callable) if name[0] != "_"]
        other = [name for name, _ in inspect.getmembers(awaited, callable) if name[0] != "_"]
        assert names == other
        for name in names:
            wanted = inspect.signature(getattr(blocking, name)).parameters
            assert list(inspect.signature(getattr(awaited, name)).parameters) == list(wanted)


def test_a_checkpoint_is_listed_as_it_was_written(model):
    """Behind the first, which every model has."""
    made = model.checkpoint(pinned=True)

    first, second = model.checkpoints()

    assert second == made
    assert (made.version, made.pinned, first.pinned) == (0, True, False)
    assert made.bytes > 0


def test_verifying_answers_the_checkpoint(model):
    """By itself or by its name."""
    made = model.checkpoint()

    assert model.verify(made) == model.verify(made.id) == made


def test_a_pinned_checkpoint_is_not_deleted_until_it_is_unpinned(model):
    """And then it is gone."""
    made = model.checkpoint()
    model.checkpoint()  # the newest one is needed
    model.pin(made)
    with pytest.raises(Conflict, match="unpin"):
        model.delete_checkpoint(made)
    model.pin(made.id, pinned=False)

    model.delete_checkpoint(made)

    assert made not in model.checkpoints()
    for call in (model.verify, model.pin, model.restore, model.delete_checkpoint):
        with pytest.raises(CheckpointNotFound):
            call(made)


def test_the_last_whole_checkpoint_is_not_deleted(model):
    """Without it the model would be lost at a restart."""
    (only,) = model.checkpoints()

    with pytest.raises(Conflict, match="write another first"):
        model.delete_checkpoint(only)

    assert model.checkpoints() == [only]


def test_a_fork_is_a_model_of_its_own(client, model):
    """Its sessions are its own, and the source does not change."""
    made = model.checkpoint()

    forked = model.fork(made, f"{model.name}-fork")
    with forked.worker("w0") as worker:
        worker.push(ONES)

    assert forked.name in client.models()
    assert_same(forked.pull(), {name: array - 1 for name, array in PARAMETERS.items()})
    assert_same(model.pull(), PARAMETERS)
    with pytest.raises(ModelExists):
        model.fork(made, forked.name)


def test_a_restore_brings_the_slots_back_too(model):
    """The version is one that never was."""
    with model.worker("w0") as worker:
        worker.push(ONES)
        made = model.checkpoint()
        slot = model.pull(slot="momentum")
        version = worker.push(ONES).version

        after = model.restore(made)

        with pytest.raises(StaleIncarnation):
            worker.push(ONES)
    assert after > version
    assert_same(model.pull(slot="momentum"), slot)


def test_state_made_elsewhere_is_taken_over(model):
    """In whole, or some of it."""
    first = model.import_state(ONES, {"momentum": TWOS}, iterations=9)
    second = model.import_state(iterations=4)

    assert second == first + 1 == model.describe()["version"]
    assert model.describe()["iterations"] == 4
    assert_same(model.pull(), ONES)
    assert_same(model.pull(slot="momentum"), TWOS)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None, None, None), InvalidInput),
        ((None, {"velocity": ONES}, None), InvalidInput),
        (({"scale": np.float32(1)}, None, None), InvalidInput),
        (({**ONES, "scale": np.ones(2, np.float32)}, None, None), InvalidInput),
        ((ONES, None, -1), InvalidArgument),
        ((ONES, None, True), InvalidArgument),
        ((ONES, None, 1 << 63), InvalidArgument),
    ],
)
def test_state_that_does_not_fit_changes_nothing(model, arguments, error):
    """Whether it is seen here or there."""
    with pytest.raises(error):
        model.import_state(*arguments)

    assert model.describe()["version"] == 0
    assert_same(model.pull(), PARAMETERS)


@pytest.mark.parametrize("name", ["..", "../other", "", "A", "m\u00f6dell", "9" * 65, 7, None])
def test_a_name_that_can_be_none_is_refused_before_anything_is_sent(model, name):
    """For a checkpoint, and for the model that a fork makes."""
    calls = [model.restore, model.verify, model.pin, model.delete_checkpoint]
    for call in calls:
        with pytest.raises(InvalidName, match="checkpoint name"):
            call(name)
    with pytest.raises(InvalidName, match="model name"):
        model.fork("000001-v0", name)


def test_a_checkpoint_that_is_not_there_is_not_found(client, model):
    """And of a model that is gone, it is the model that is not."""
    for call in (model.restore, model.verify, model.pin, model.delete_checkpoint):
        with pytest.raises(CheckpointNotFound):
            call("000009-v9")
    with pytest.raises(CheckpointNotFound):
        model.fork("000009-v9", f"{model.name}-fork")
    client.delete_model(model.name)

    for call in (model.checkpoint, model.checkpoints, lambda: model.import_state(iterations=1)):
        with pytest.raises(ModelNotFound):
            call()
