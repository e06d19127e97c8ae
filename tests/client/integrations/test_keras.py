"""Tests of `stepwell.integrations.keras`: updates on NumPy; `fit` on torch and JAX."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import stepwell
from stepwell.errors import (
    ConnectionFailed,
    DtypeMismatch,
    Forbidden,
    InvalidArgument,
    LayoutMismatch,
    ModelDiffers,
)

from tests.requirements import require_package
from tests.servers import hosted

keras = require_package("keras")
from stepwell.integrations.keras import Pull, RemoteOptimizer  # noqa: E402

pytestmark = [
    pytest.mark.oracle,
    # Keras's own variables do not know NumPy's newest keyword yet.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy"),
]

PROGRAM = Path(__file__).parent / "keras_program.py"
GRADIENTS = [np.full((2, 3), 0.5, np.float32), np.arange(3, dtype=np.float32)]


def new_variables(prefix="dense"):
    """Return two variables of a layer that Keras would call so."""
    with keras.name_scope(prefix):
        kernel = keras.Variable(np.ones((2, 3), np.float32), name="kernel")
        return [kernel, keras.Variable(np.zeros(3, np.float32), name="bias")]


@pytest.fixture
def new(client, name):
    """Return what makes optimizers of one model; they are closed at the end."""
    made = []

    def make(optimizer="sgd", **options):
        made.append(RemoteOptimizer(optimizer, **{"model": name, "client": client, **options}))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


def test_an_update_is_that_of_keras(new):
    """Slots, clipping and decay are the server's; several steps, to 1e-6."""
    make = lambda: keras.optimizers.Adam(0.1, weight_decay=0.05, clipnorm=1.0)  # noqa: E731
    ours, theirs = new_variables(), new_variables()
    remote, local = new(make()), make()

    for _ in range(5):
        remote.apply(GRADIENTS, ours)
        local.apply(GRADIENTS, theirs)

    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-7)
    assert remote.worker.layout.names == ("dense/kernel", "dense/bias")
    assert remote.remote.describe()["version"] == 5


def test_a_variable_without_a_gradient_keeps_its_slots(new):
    """It is not pushed, as Keras leaves it out of the step."""
    ours, theirs = new_variables(), new_variables()
    remote, local = new(keras.optimizers.SGD(0.1, momentum=0.9)), keras.optimizers.SGD(0.1, 0.9)

    for optimizer, variables in ((remote, ours), (local, theirs)):
        optimizer.apply(GRADIENTS, variables)
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply([None, GRADIENTS[1]], variables)
        optimizer.apply(GRADIENTS, variables)

    np.testing.assert_allclose(ours[0].numpy(), theirs[0].numpy(), rtol=1e-6)


def test_who_joins_later_begins_at_the_parameters_of_the_server(new):
    """Its own initial values do not count."""
    first, second = new_variables(), new_variables()
    new().apply(GRADIENTS, first)

    new(worker="w1").build(second)

    np.testing.assert_array_equal(second[1].numpy(), first[1].numpy())


def new_statistics(value=0.0, dtype="float32"):
    """Return a variable that is not trained."""
    with keras.name_scope("norm"):
        return keras.Variable(np.full(3, value), name="moving_mean", trainable=False, dtype=dtype)


def test_state_begins_at_the_servers_and_each_push_sets_it(new):
    """Beside the parameters, not optimized; another worker's own is not touched by a pull."""
    first, second = new_statistics(), new_statistics(9.0)
    ours, theirs = new_variables(), new_variables()
    remote = new(state=[first])
    remote.build(ours)
    first.assign([1.0, 2.0, 3.0])
    remote.apply(GRADIENTS, ours)
    joined = new(worker="w1", state=[second])
    joined.build(theirs)
    second.assign([5.0, 5.0, 5.0])
    joined.apply(GRADIENTS, theirs)
    remote.pull()

    np.testing.assert_array_equal(remote.remote.pull()["norm/moving_mean"], [5.0, 5.0, 5.0])
    np.testing.assert_array_equal(first.numpy(), [1.0, 2.0, 3.0])
    assert remote.remote.describe()["state"] == ["norm/moving_mean"]


def test_seeds_and_counters_are_no_state(new):
    """They are this process's own."""
    remote = new(state=[new_statistics(dtype="uint32")])
    remote.build(new_variables())

    assert "norm/moving_mean" not in remote.remote.layout.names


def test_a_variable_is_trained_or_is_state(new):
    """The sentence says where state comes from."""
    variables = new_variables()
    with pytest.raises(InvalidArgument, match=r"dense/bias.*model.non_trainable_variables"):
        new(state=variables[1:]).build(variables)


def test_a_model_without_this_state_is_refused_by_its_name(new):
    """As other variables are."""
    new().build(new_variables())

    with pytest.raises(LayoutMismatch, match="'norm/moving_mean' has shape none there"):
        new(worker="w1", state=[new_statistics()]).build(new_variables())


def test_a_learning_rate_that_is_set_is_the_servers(new):
    """Callbacks of Keras set it so; a schedule cannot be set, as in Keras."""
    optimizer = new(keras.optimizers.SGD(0.5))
    optimizer.build(new_variables())

    optimizer.learning_rate = 0.25

    assert float(optimizer.learning_rate) == 0.25
    assert optimizer.remote.optimizer().learning_rate == 0.25


def test_a_learning_rate_that_is_set_before_the_model_is_there_counts(new):
    """The model is created with it; it was shown, and the server's was another."""
    optimizer = new(keras.optimizers.SGD(0.5))

    optimizer.learning_rate = 0.25
    optimizer.build(new_variables())

    assert optimizer.remote.optimizer().learning_rate == 0.25


def test_who_joins_sees_the_present_learning_rate(new):
    """A callback that lowers it begins there, after a restart of the script too."""
    first = new(keras.optimizers.SGD(0.5))
    first.build(new_variables())
    first.learning_rate = 0.125
    joined = new(keras.optimizers.SGD(0.5), worker="w1")

    joined.build(new_variables())

    assert float(joined.learning_rate) == 0.125


def test_who_loads_a_model_takes_nobodys_place(new, server):
    """To look at a saved model is no reason to fence the worker that trains it."""
    trained, variables = new_variables(), new_variables("other")
    optimizer = new(keras.optimizers.SGD(0.5), url=server.url, worker="w5")
    optimizer.apply(GRADIENTS, trained)

    again = from_file(optimizer, variables)

    np.testing.assert_array_equal(variables[0].numpy(), new_variables()[0].numpy())
    with pytest.raises(InvalidArgument, match=r"call model.optimizer.pull\(\)"):
        again.apply(GRADIENTS, variables)
    optimizer.apply(GRADIENTS, trained)
    assert optimizer.remote.describe()["version"] == 2


def test_a_loaded_optimizer_joins_by_a_pull(new, server):
    """Under the tensors' old names, though its variables have others, as Keras gives them."""
    trained, variables = new_variables(), new_variables("other")
    optimizer = new(keras.optimizers.SGD(0.5), url=server.url)
    optimizer.apply(GRADIENTS, trained)

    with contextlib.closing(from_file(optimizer, variables)) as again:
        again.pull()
        np.testing.assert_array_equal(variables[1].numpy(), trained[1].numpy())
        again.apply(GRADIENTS, variables)

        assert again.remote.describe()["version"] == 2


def from_file(optimizer, variables):
    """Return the optimizer as it comes with a model from a file: Keras builds it at once."""
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    again.build(variables)
    return again


def test_a_configuration_makes_the_same_optimizer(new):
    """As it is saved with a model; no token is in it."""
    optimizer = new(keras.optimizers.Adam(0.125), worker="w7", pulls=False)

    config = optimizer.get_config()
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))

    assert json.loads(json.dumps(config)) == config
    assert isinstance(again, RemoteOptimizer)
    assert again.get_config() == config


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())},
            InvalidArgument,
            "loss scale",
        ),
        ({"optimizer": keras.optimizers.Lion()}, InvalidArgument, "Unknown optimizer 'Lion'"),
        ({"optimizer": 3}, InvalidArgument, "Received: int"),
    ],
)
def test_an_optimizer_that_the_server_has_not_is_refused_at_once(new, change, error, words):
    """Before a model is compiled with it."""
    with pytest.raises(error, match=words):
        new(**change)


def test_a_backend_that_cannot_ask_a_server_is_refused_at_once(new, monkeypatch):
    """Keras takes TensorFlow when nothing is said, and `fit` would fail with its own words."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")

    with pytest.raises(InvalidArgument, match="Received: 'tensorflow'; set KERAS_BACKEND=torch"):
        new("sgd")


def test_variables_that_do_not_match_the_model_are_refused(new):
    """The sentence names the variable, both shapes, and how Keras comes to other names."""
    new().build(new_variables())
    with pytest.raises(LayoutMismatch, match=r"'dense_1/kernel' has shape none there and \(2, 3\)"):
        new(worker="w1").build(new_variables("dense_1"))
    with pytest.raises(ModelDiffers):
        new("adam", worker="w1").build(new_variables())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dtype": "int32"}, DtypeMismatch, "int32 for 'scope/w'"),
        ({"name": "w", "constraint": "non_neg"}, InvalidArgument, "no constraints.*'scope/w'"),
    ],
)
def test_variables_that_no_server_trains_are_refused(new, options, error, words):
    """Whole numbers; and constraints, which would be applied here alone."""
    constraint = options.pop("constraint", None)
    with keras.name_scope("scope"):
        variable = keras.Variable(np.ones(2), **{"dtype": "float32", "name": "w", **options})
    variable.constraint = keras.constraints.get(constraint)

    with pytest.raises(error, match=words):
        new().build([variable])


def test_variables_of_another_dtype_are_named(new):
    """Both dtypes, and how to come to the model's."""
    new().build(new_variables())
    with keras.name_scope("dense"):
        kernel = keras.Variable(np.ones((2, 3)), dtype="float64", name="kernel")

    with pytest.raises(DtypeMismatch, match=r"'dense/kernel' is float32.*Received float64"):
        new(worker="w1").build([kernel, new_variables()[1]])


def test_layers_may_have_several_widths(new):
    """A push has one; gradients of half width are widened then."""
    with keras.name_scope("dense"):
        narrow = keras.Variable(np.ones(2), dtype="float16", name="narrow")
    variables = [narrow, new_variables()[1]]

    new(keras.optimizers.SGD(0.5)).apply([np.ones(2, np.float16), GRADIENTS[1]], variables)

    np.testing.assert_array_equal(narrow.numpy(), np.float16([0.5, 0.5]))


def test_layers_of_half_width_may_have_state(new):
    """Statistics are held in float32, whatever the gradients are."""
    with keras.name_scope("dense"):
        narrow = keras.Variable(np.ones(2), dtype="float16", name="narrow")
    remote = new(keras.optimizers.SGD(0.5), state=[new_statistics(dtype="float16")])

    remote.apply([np.ones(2, np.float16)], [narrow])

    assert remote.remote.describe()["version"] == 1


def test_two_variables_of_one_path_are_refused(new):
    """They would be one tensor."""
    with pytest.raises(InvalidArgument, match="twice: 'dense/kernel'"):
        new().build([*new_variables(), *new_variables()])


def test_a_server_that_is_not_there_is_our_error(new):
    """A script can catch it, and try again with the same optimizer."""
    client = stepwell.Client("http://127.0.0.1:9", timeout=stepwell.Timeout(retry_s=0.1))

    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"):
        new(client=client).build(new_variables())


def test_a_token_that_may_not_create_is_our_error(tmp_path):
    """A token that reads is known and may not: the script is told before the first step."""
    from stepwell_server.tokens import TokenStore

    token = TokenStore(tmp_path).create("read")
    with hosted(tmp_path) as server, stepwell.Client(server.url, token) as client:
        optimizer = RemoteOptimizer("sgd", model="m", client=client)

        with pytest.raises(Forbidden):
            optimizer.build(new_variables())


def test_a_token_that_may_only_push_joins(tmp_path):
    """Workers have such; it is told of another rule, and of a model that is not there."""
    from stepwell_server.tokens import TokenStore

    tokens = {role: TokenStore(tmp_path).create(role) for role in ("admin", "push")}
    with (
        hosted(tmp_path) as server,
        stepwell.Client(server.url, tokens["admin"]) as admin,
        stepwell.Client(server.url, tokens["push"]) as client,
    ):
        RemoteOptimizer("sgd", model="m", client=admin).build(new_variables())
        with contextlib.closing(
            RemoteOptimizer("sgd", model="m", client=client, worker="w1")
        ) as joined:
            joined.apply(GRADIENTS, new_variables())
            assert joined.remote.describe()["version"] == 1

        with pytest.raises(ModelDiffers, match=r"optimizer SGD\. Received: Adam"):
            RemoteOptimizer("adam", model="m", client=client).build(new_variables())
        with pytest.raises(Forbidden, match=r"no model 'n' yet.*role admin"):
            RemoteOptimizer("sgd", model="n", client=client).build(new_variables())


def test_a_call_before_the_optimizer_is_built_says_what_to_do(new):
    """There is no session yet."""
    with pytest.raises(InvalidArgument, match=r"optimizer.build\(model.trainable_variables\)"):
        new().pull()


@pytest.mark.parametrize("options", [{"at": "step"}, {"every": 0}, {"every": 1.5}])
def test_a_pull_that_cannot_be_is_refused(options):
    """At once, not in the middle of a fit."""
    with pytest.raises(InvalidArgument, match="Received"):
        Pull(**options)


def test_a_pull_needs_a_model_of_ours():
    """The sentence names the optimizer that is there."""
    callback = Pull("epoch")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse")
    callback.set_model(model)

    with pytest.raises(InvalidArgument, match="Received: SGD"):
        callback.on_epoch_begin(0)


def test_a_pull_finds_the_optimizer_behind_a_loss_scale_of_keras(new):
    """`model.compile` puts one around it in mixed float16."""
    remote, callback = new(keras.optimizers.SGD(1.0), pulls=False), Pull("epoch")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")], name="net")
    model.compile(optimizer=keras.optimizers.LossScaleOptimizer(remote), loss="mse")
    variables = model.trainable_variables
    remote.apply([np.ones((2, 1), np.float32), np.float32([3])], variables)
    callback.set_model(model)

    callback.on_epoch_begin(0)

    np.testing.assert_array_equal(variables[1].numpy(), [-3])


@pytest.mark.full
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_fit_through_a_server_is_that_of_keras_alone(server, backend):
    """Three epochs, one worker: equal to 1e-5 of the change; rounding differs, nothing else.

    With momentum; with Adam, a schedule, decay and clipping; with a moving average. Then: pulls at
    epochs alone, a model that was deleted in between, a learning rate that a callback sets.
    """
    require_package(backend)

    done = subprocess.run(
        [sys.executable, str(PROGRAM), server.url],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "KERAS_BACKEND": backend},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == backend
    for name in ("momentum", "adam", "average"):
        assert found[name]["change"] > 0.1
        assert found[name]["version"] == 12
        assert found[name]["relative"] < 1e-5
    assert found["epochs"] == {"is_changed": True, "is_behind": True, "is_newest": True}
    assert found["refused"] == {"raised": "ModelNotFound", "is_whole": True}
    assert found["rate"] == pytest.approx(0.25 / 3)
    assert found["normalized"].pop("apart") < 1e-5
    assert found["normalized"] == {
        "names": ["net/norm/moving_mean", "net/norm/moving_variance"],
        "is_sent": True,
        "is_joined": True,
    }
