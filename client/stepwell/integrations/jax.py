"""JAX: trees of parameters to and from a server, and a pair of functions as optax has them.

A loop written for optax changes two lines, the import and the optimizer:

    params, tx = join(params, model="mnist", optimizer=stepwell.Adam(1e-3))  # was optax.adam(1e-3)
    state = tx.init(params)
    ...
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)

The names of the tensors are the paths in the tree, as "encoder/layers/0/kernel". A leaf of half
width is held in float32 on the server and comes back in its own dtype.

Inside `jax.jit` the exchange is an ordered host callback, made once a step in the program's order;
its errors reach the script as `jax.errors.JaxRuntimeError`, and `tx.error` has ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from stepwell_core.errors import (
    DtypeMismatch,
    InvalidArgument,
    LayoutMismatch,
    ModelNotFound,
    ShapeMismatch,
    StepwellError,
)
from stepwell_core.layout import Layout

from stepwell.client import Client, Model
from stepwell.integrations.joining import created_or_joined
from stepwell.optimizers import as_optimizer, callables_of
from stepwell.results import Parameters, PushResult
from stepwell.worker import Worker

Tree = Any
"""Anything that JAX knows as a tree: nested dictionaries, lists, dataclasses of arrays."""

_ROOT = "value"  # the name of a tree that is a single array


def named_leaves(tree: Tree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, in JAX's order.

    Raises:
        InvalidArgument: Two leaves have the same path, as in {"a/b": x, "a": {"b": y}}.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or _ROOT
        if name in leaves:
            raise InvalidArgument(
                f"Each leaf of a tree has a path of its own. Received twice: {name!r}; rename a key"
            )
        leaves[name] = leaf
    return leaves


def create_model_from_tree(client: Client, name: str, tree: Tree, **options: Any) -> Model:
    """Create a model whose tensors are the leaves of a tree; see `Client.create_model`.

    Args:
        client: Of the server.
        name: Of the model.
        tree: Initial values, float32 or float64; leaves of half width are held in float32.
        options: `optimizer`, `consistency`, `on_nonfinite`, `exist_ok` of `Client.create_model`.
    """
    held = {path: _as_held(leaf) for path, leaf in named_leaves(tree).items()}
    return client.create_model(name, held, **options)


def push_tree(worker: Worker, tree: Tree, **options: Any) -> PushResult:
    """Push a tree of gradients; leaves that are None are left out. See `Worker.push`."""
    return worker.push(_of_one_width(named_leaves(tree)), **options)


def pull_tree(worker: Worker, like: Tree, **options: Any) -> Tree:
    """Pull the parameters as a tree.

    Args:
        worker: Of the model.
        like: A tree of the same structure, shapes and dtypes; its leaves are not read.
        options: See `Worker.pull`.

    Returns:
        A tree of JAX arrays.

    Raises:
        LayoutMismatch, ShapeMismatch: The tree is not that of the model.
    """
    _check_matches(like, worker.layout)
    return _tree_of(worker.pull(**options), like)


def join(
    params: Tree,
    *,
    model: str,
    optimizer: Any,
    worker: str = "w0",
    url: str | None = None,
    client: Client | None = None,
    **options: Any,
) -> tuple[Tree, RemoteOptimizer]:
    """Create a model or join those who train it, as one worker.

    Args:
        params: Initial values; where the model exists, only their names, shapes and dtypes count.
        model: Its name.
        optimizer: Of `Client.create_model`.
        worker: Name of this process among the workers.
        url: Of the server; see `Client`.
        client: Of the server, instead of `url`.
        options: `consistency` and `on_nonfinite` of `Client.create_model`.

    Returns:
        The parameters as they are on the server, and what stands in for an optax optimizer.

    Raises:
        LayoutMismatch, ShapeMismatch, DtypeMismatch: The model on the server is of another tree.
        ModelDiffers: It has another optimizer.
        Forbidden: There is no such model, and the token's role may not create it.
    """
    used = client or Client(url)
    owned = None if client else used
    try:
        with contextlib.suppress(ModelNotFound):
            _check_held(params, used.model(model).layout)
        create = partial(
            create_model_from_tree,
            used,
            model,
            params,
            optimizer=optimizer,
            exist_ok=True,
            **options,
        )
        opened = created_or_joined(used, model, optimizer, create)
        values = callables_of(as_optimizer(optimizer))
        session = opened.worker(worker, hyperparameters=values).open()
        return pull_tree(session, params), RemoteOptimizer(session, owned)
    except BaseException:
        if owned is not None:
            owned.close()
        raise


class RemoteState(NamedTuple):
    """The state of a `RemoteOptimizer`, a tree of JAX: all else is on the server.

    Attributes:
        version: Of the parameters that came last, int32.
    """

    version: jax.Array


class RemoteOptimizer:
    """What stands in for an `optax.GradientTransformation`: its step is made by the server.

    A context manager, whose end closes the session.

    Args:
        worker: A session.
        client: To be closed with it.

    Attributes:
        worker: The session.
        error: What the last exchange inside `jax.jit` raised; None if it went well.
    """

    def __init__(self, worker: Worker, client: Client | None = None) -> None:
        self.worker = worker
        self.error: StepwellError | None = None
        self._client = client

    def close(self) -> None:
        """Close the session, and what `join` opened for it."""
        self.worker.close()
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def init(self, params: Tree) -> RemoteState:
        """Return the state before the first update.

        Raises:
            LayoutMismatch, ShapeMismatch: The tree is not that of the model.
            InvalidArgument: The parameters are not those of the server, so the first gradient would
                be one of other parameters; or it is called inside `jax.jit`.
        """
        if _is_traced(jax.tree.leaves(params)):
            raise InvalidArgument(
                "`init` compares the parameters with the server's. Received them inside jax.jit or "
                "the like, where they have no numbers; call state = tx.init(params) outside"
            )
        pulled = pull_tree(self.worker, params)
        for name, theirs in named_leaves(pulled).items():
            if not np.array_equal(theirs, np.asarray(named_leaves(params)[name]), equal_nan=True):
                raise InvalidArgument(
                    f"Training begins at the model's parameters, of version {self.worker.version}. "
                    f"Received other numbers for {name!r}; begin with "
                    "params = pull_tree(tx.worker, params)",
                    tensor=name,
                )
        return RemoteState(jnp.int32(self.worker.version))

    def update(
        self, updates: Tree, state: RemoteState, params: Tree | None = None, **extra: Any
    ) -> tuple[Tree, RemoteState]:
        """Push gradients, pull, and return what to add to the parameters.

        Args:
            updates: Gradients, a tree as `params` is; those that are None are left out.
            state: Of `init` or the last update.
            params: At which the gradients were computed.
            extra: What other transformations take; not used.

        Returns:
            Differences such that `optax.apply_updates(params, differences)` are the parameters of
            the server, to half an ulp of the old value; that error does not add up.

        Raises:
            InvalidArgument: No `params`.
            StepwellError: See `Worker.push`; inside `jax.jit` as a `JaxRuntimeError`.
        """
        if params is None:
            raise InvalidArgument(
                "`update` needs the parameters: tx.update(grads, state, params). Received: none"
            )
        _check_matches(params, self.worker.layout)
        gradients = _of_one_width(named_leaves(updates))
        if _is_traced([*gradients.values(), *jax.tree.leaves(params)]):
            version, pulled = self._exchange_traced(gradients, params)
        else:
            version, pulled = self._exchange(gradients, params)
        differences = jax.tree.map(jnp.subtract, pulled, params)
        return differences, RemoteState(jnp.asarray(version, jnp.int32))

    def _exchange(self, gradients: Mapping[str, Any], like: Tree) -> tuple[int, Tree]:
        parameters = self.worker.push_pull(gradients)
        return parameters.version, _tree_of(parameters, like)

    def _exchange_traced(self, gradients: Mapping[str, Any], params: Tree) -> tuple[Any, Tree]:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), _dtype_of(leaf)), params
        )

        def exchanged(arrays: Mapping[str, Any]) -> tuple[Any, Tree]:
            self.error = None
            try:
                version, pulled = self._exchange(arrays, like)
            except StepwellError as error:
                self.error = error
                raise
            return np.int32(version), pulled

        shapes = (jax.ShapeDtypeStruct((), jnp.int32), like)
        version, pulled = io_callback(exchanged, shapes, dict(gradients), ordered=True)
        return version, pulled


def _is_traced(values: Iterable[Any]) -> bool:
    return any(isinstance(value, jax.core.Tracer) for value in values)


def _dtype_of(leaf: Any) -> Any:
    """Return the dtype of a leaf; a number of Python has the one that JAX gives it."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _is_half(leaf: Any) -> bool:
    return _dtype_of(leaf) in (jnp.bfloat16, jnp.float16)


def _as_held(leaf: Any) -> Any:
    """Return a leaf as the server holds it."""
    if not hasattr(leaf, "dtype"):
        return np.asarray(leaf, _dtype_of(leaf))
    return np.asarray(leaf).astype(np.float32) if _is_half(leaf) else leaf


def _of_one_width(gradients: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return gradients that one push can have: those of half width only if all are."""
    if len({_dtype_of(gradient) for gradient in gradients.values()}) < 2:
        return gradients
    return {n: g.astype(jnp.float32) if _is_half(g) else g for n, g in gradients.items()}


def _tree_of(parameters: Parameters, like: Tree) -> Tree:
    leaves = named_leaves(like)
    arrays = [jnp.asarray(parameters[name], dtype=_dtype_of(leaf)) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), arrays)


def _check_held(tree: Tree, layout: Layout) -> None:
    """Raise unless the server would hold a tree just as it holds the model."""
    _check_matches(tree, layout)
    for name, leaf in named_leaves(tree).items():
        received = "float32" if _is_half(leaf) else np.dtype(_dtype_of(leaf)).name
        if received != layout.segments[name].tensor.dtype:
            raise DtypeMismatch(
                f"{name!r} is {layout.segments[name].tensor.dtype} in the model. Received a tree "
                f"where it is {received}; convert it, or create a model of another name",
                tensor=name,
                expected=layout.segments[name].tensor.dtype,
                received=received,
            )


def _check_matches(tree: Tree, layout: Layout) -> None:
    """Raise unless the leaves of a tree are the tensors of a model."""
    leaves = named_leaves(tree)
    differing = sorted(leaves.keys() ^ set(layout.names))
    if differing:
        name = differing[0]
        where = "the model and not in the tree" if name in layout.names else "the tree alone"
        raise LayoutMismatch(
            f"A tree has the model's tensors. Received another one: {name!r} is in {where}. "
            "Take the tree with which the model was created, or create a model of another name",
            tensor=name,
        )
    for tensor in layout:
        received = tuple(np.shape(leaves[tensor.name]))
        if received != tensor.shape:
            raise ShapeMismatch(
                f"{tensor.name!r} has shape {tensor.shape} in the model. Received a tree where it "
                f"has {received}; take the sizes with which the model was created",
                tensor=tensor.name,
                expected=list(tensor.shape),
                received=list(received),
            )
