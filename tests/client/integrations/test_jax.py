"""Tests of `stepwell.integrations.jax`: trees, and loops that were written for optax."""

from __future__ import annotations

import numpy as np
import pytest
import stepwell
from stepwell.errors import (
    ConnectionFailed,
    DtypeMismatch,
    Forbidden,
    InvalidArgument,
    InvalidName,
    LayoutMismatch,
    ShapeMismatch,
)
from stepwell_server.tokens import TokenStore

from tests.requirements import require_package
from tests.servers import hosted

jax = require_package("jax")
import jax.numpy as jnp  # noqa: E402
from stepwell.integrations.jax import (  # noqa: E402
    RemoteOptimizer,
    create_model_from_tree,
    join,
    named_leaves,
    pull_tree,
    push_tree,
)

pytestmark = pytest.mark.full

DATA = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
TARGETS = (DATA @ np.float32([[1], [-2], [3]]) + 0.5).astype(np.float32)


def new_tree():
    """Return parameters of a small network, with a list in their tree."""
    rng = np.random.default_rng(1)
    first = {"kernel": jnp.asarray(rng.standard_normal((3, 4)) / 2, jnp.float32)}
    second = {"kernel": jnp.asarray(rng.standard_normal((4, 1)) / 2, jnp.float32)}
    return {"layers": [first | {"bias": jnp.zeros(4)}, second | {"bias": jnp.zeros(1)}]}


def loss(params, data=DATA, targets=TARGETS):
    """Return the mean squared error of that network."""
    first, second = params["layers"]
    hidden = jnp.tanh(data @ first["kernel"] + first["bias"])
    return jnp.mean((hidden @ second["kernel"] + second["bias"] - targets) ** 2)


def assert_same_trees(left, right, **tolerances):
    """Compare structure and numbers."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), left, right)


def trained(tx, params, steps=30, jit=lambda function: function):
    """Train as a program for optax does."""
    optax = require_package("optax")

    @jit
    def step(params, state):
        gradients = jax.grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_tensors_are_named_by_their_paths():
    """A person reads them in the list of tensors, and torch's and Keras's look alike."""
    assert list(named_leaves(new_tree())) == [
        "layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel"
    ]  # fmt: skip
    assert list(named_leaves(jnp.zeros(2))) == ["value"]


def test_a_tree_comes_back_as_it_went(client, name):
    """A push and a pull, with a leaf of half width, which is float32 on the server."""
    tree = {**new_tree(), "half": jnp.ones(2, jnp.bfloat16)}
    model = create_model_from_tree(client, name, tree, optimizer=stepwell.SGD(0.5))

    with model.worker("w0") as worker:
        first = pull_tree(worker, tree)
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), tree)
        result = push_tree(worker, {**ones, "half": None})
        second = pull_tree(worker, like=tree)

    assert model.layout.segments["half"].tensor.dtype == "float32"
    assert result.outcome == "applied"
    assert_same_trees(first, tree)
    assert second["half"].dtype == jnp.bfloat16
    assert_same_trees(second["layers"], jax.tree.map(lambda leaf: leaf - 0.5, tree["layers"]))


@pytest.mark.parametrize("jit", [lambda function: function, jax.jit], ids=["eager", "jit"])
def test_a_loop_written_for_optax_trains_as_with_optax(server, name, jit):
    """Two lines differ. To 1e-5 of the change: rounding differs, the formulas are the same."""
    optax = require_package("optax")
    params, tx = join(
        new_tree(), model=name, optimizer=stepwell.SGD(0.05, momentum=0.9), url=server.url
    )

    ours, state = trained(tx, params, jit=jit)
    theirs, _ = trained(optax.sgd(0.05, momentum=0.9), new_tree(), jit=jit)

    change = max(
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(new_tree()), strict=True)
    )
    assert change > 0.1
    assert int(state.version) == 30
    assert_same_trees(ours, theirs, rtol=0, atol=1e-5 * change)
    assert_same_trees(ours, pull_tree(tx.worker, ours), rtol=0, atol=1e-6)
    tx.close()


def test_who_joins_later_begins_where_the_others_are(server, name):
    """The second worker's own initial values do not count."""
    params, tx = join(new_tree(), model=name, optimizer="SGD", url=server.url)
    params, _ = trained(tx, params, steps=3)

    zeros = jax.tree.map(jnp.zeros_like, new_tree())
    joined, other = join(zeros, model=name, optimizer="SGD", url=server.url, worker="w1")

    assert_same_trees(joined, params, rtol=0, atol=1e-6)
    with pytest.raises(InvalidArgument, match=r"other numbers for 'layers/0/\w+'.*pull_tree"):
        other.init(zeros)
    for each in (tx, other):
        each.close()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"extra": jnp.zeros(1)}, LayoutMismatch, "'extra' is in the tree alone"),
        ({"b": None}, LayoutMismatch, "'b' is in the model and not in the tree"),
        ({"a": jnp.zeros((1, 2))}, ShapeMismatch, r"'a' has shape \(2,\).*it has \(1, 2\)"),
    ],
)
def test_a_tree_that_is_not_the_models_is_refused(client, name, change, error, words):
    """Before anything is pushed: the sentence names the tensor and both sides."""
    tree = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    model = create_model_from_tree(client, name, tree, optimizer="SGD")
    other = {**tree, **change}

    with model.worker("w0") as worker:
        with pytest.raises(error, match=words):
            pull_tree(worker, other)
        with pytest.raises(error, match=words):
            RemoteOptimizer(worker).update(other, None, other)

    assert model.describe()["version"] == 0


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_tree_may_have_leaves_of_several_widths(client, name, jit):
    """Norms in float32 beside kernels in bfloat16; a push has one width."""
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2)}
    params, tx = join(tree, model=name, optimizer=stepwell.SGD(0.5), client=client)

    updates, _ = jit(tx.update)(tree, tx.init(params), params)
    push_tree(tx.worker, tree)

    assert updates["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["a"], [-0.5, -0.5])
    np.testing.assert_array_equal(tx.worker.pull()["a"], [0, 0])


def test_numbers_of_python_are_leaves(client, name):
    """As JAX has it: each is a float32 without a shape."""
    params, tx = join({"a": 1.0}, model=name, optimizer=stepwell.SGD(0.5), client=client)

    updates, _ = tx.update({"a": 1.0}, tx.init({"a": 1.0}), {"a": 1.0})

    assert params["a"].dtype == jnp.float32
    assert float(updates["a"]) == -0.5


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"a": jnp.zeros(4)}, ShapeMismatch, r"'a' has shape \(2,\) in the model.*it has \(4,\)"),
        ({"c": jnp.zeros(4)}, LayoutMismatch, "'c' is in the tree alone"),
        ({"a": np.zeros(2)}, DtypeMismatch, "'a' is float32 in the model.*it is float64"),
    ],
)
def test_who_joins_with_another_tree_is_told_the_tensor(client, name, change, error, words):
    """Not only that the tensors are others."""
    tree = {"a": jnp.zeros(2)}
    create_model_from_tree(client, name, tree, optimizer="SGD")

    with pytest.raises(error, match=words):
        join({**tree, **change}, model=name, optimizer="SGD", client=client)


def test_a_token_that_may_only_push_joins(tmp_path):
    """With callables too, which this worker evaluates; creating needs the role admin."""
    tokens = {role: TokenStore(tmp_path).create(role) for role in ("admin", "push")}
    options = {"model": "m", "optimizer": stepwell.SGD(lambda: 0.5)}
    tree = {"a": jnp.ones(2)}
    with (
        hosted(tmp_path) as server,
        stepwell.Client(server.url, tokens["admin"]) as admin,
        stepwell.Client(server.url, tokens["push"]) as client,
    ):
        with pytest.raises(Forbidden, match="no model 'm' yet"):
            join(tree, client=client, **options)
        join(tree, client=admin, **options)

        _, tx = join(tree, client=client, worker="w1", **options)
        updates, _ = tx.update(tree, tx.init(tree), tree)

    np.testing.assert_array_equal(updates["a"], [-0.5, -0.5])


def test_init_inside_jit_says_where_it_belongs(client, name):
    """There are no numbers to compare inside."""
    params, tx = join({"a": jnp.zeros(2)}, model=name, optimizer="SGD", client=client)

    with pytest.raises(InvalidArgument, match=r"call state = tx.init\(params\) outside"):
        jax.jit(tx.init)(params)


def test_trees_that_no_model_can_have_are_refused(client, name):
    """Whole numbers, two leaves of one name, a name that is not allowed."""
    for tree, error, words in [
        ({"step": jnp.zeros((), jnp.int32)}, DtypeMismatch, "int32 for 'step'"),
        ({"a/b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}}, InvalidArgument, "twice: 'a/b'"),
        ({"..": jnp.zeros(1)}, InvalidName, "no '..' part"),
    ]:
        with pytest.raises(error, match=words):
            create_model_from_tree(client, name, tree, optimizer="SGD")


def test_a_server_that_is_not_there_is_our_error():
    """A script can catch it, and its sentence has the address."""
    client = stepwell.Client("http://127.0.0.1:9", timeout=stepwell.Timeout(retry_s=0.1))

    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"):
        join({"a": jnp.zeros(1)}, model="m", optimizer="SGD", client=client)


def test_an_error_inside_jit_can_be_caught(client, name):
    """JAX makes an error of its own of it, whose text has our sentence; ours is kept."""
    tree = {"a": jnp.ones(2)}
    params, tx = join(tree, model=name, optimizer="SGD", client=client)
    state = tx.init(params)
    client.delete_model(name)

    with pytest.raises(jax.errors.JaxRuntimeError, match="stepwell"):
        jax.block_until_ready(jax.jit(tx.update)(params, state, params))

    assert isinstance(tx.error, stepwell.StepwellError)
    with pytest.raises(type(tx.error)):
        tx.update(params, state, params)


def test_an_update_without_parameters_is_refused(client, name):
    """Optax lets them out for optimizers that do not look at them."""
    model = create_model_from_tree(client, name, {"a": jnp.ones(2)}, optimizer="SGD")

    with pytest.raises(InvalidArgument, match="needs the parameters"):
        RemoteOptimizer(model.worker("w0")).update({"a": jnp.ones(2)}, None)
