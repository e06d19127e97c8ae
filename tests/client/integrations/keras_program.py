"""Trains the same small network with Keras alone and through a server; prints what differed.

    KERAS_BACKEND=jax python keras_program.py URL

A process of its own for each backend, since Keras reads its backend once. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys

import keras
import numpy as np
import stepwell
from stepwell.integrations.keras import KeepState, Pull, RemoteOptimizer

URL = sys.argv[1]
BACKEND = keras.backend.backend()
DATA = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
TARGETS = (DATA @ np.float32([[1], [-2], [3]]) + 0.5).astype(np.float32)
FIT = {"batch_size": 16, "epochs": 3, "shuffle": False, "verbose": 0}


def network():
    """Return a small network with fixed names and initial values."""
    keras.utils.set_random_seed(7)
    layers = [keras.layers.Dense(4, "tanh", name="hidden"), keras.layers.Dense(1, name="out")]
    return keras.Sequential([keras.Input((3,)), *layers], name="net")


def fitted(optimizer, callbacks=(), data=DATA):
    """Return the parameters before and after a fit."""
    model = network()
    model.compile(optimizer=optimizer, loss="mse")
    before = model.get_weights()
    model.fit(data, TARGETS, callbacks=list(callbacks), **FIT)
    return model, before, model.get_weights()


def difference(make, name):
    """Return how far a remote fit is from a local one, relative to the largest change."""
    _, before, local = fitted(make())
    remote = RemoteOptimizer(make(), model=f"{BACKEND}-{name}", url=URL)
    _, _, ours = fitted(remote)
    assert int(remote.iterations) == 12
    version = remote.remote.describe()["version"]
    remote.close()
    change = max(np.abs(a - b).max() for a, b in zip(local, before, strict=True))
    apart = max(np.abs(a - b).max() for a, b in zip(local, ours, strict=True))
    return {"relative": float(apart / change), "change": float(change), "version": version}


def pulled_by_epoch():
    """Return whether parameters without pulls change at epochs alone, and then do."""
    remote = RemoteOptimizer("sgd", model=f"{BACKEND}-epochs", url=URL, pulls=False)
    model, before, after = fitted(remote, [Pull("epoch")])
    is_changed = any((a != b).any() for a, b in zip(before, after, strict=True))
    remote.pull()
    newest = remote.remote.pull()
    weights = dict(
        zip([v.path for v in model.trainable_variables], model.get_weights(), strict=True)
    )
    is_newest = all((weights[path] == newest[path]).all() for path in newest)
    is_behind = any((a != b).any() for a, b in zip(after, model.get_weights(), strict=True))
    remote.close()
    return {"is_changed": is_changed, "is_behind": is_behind, "is_newest": is_newest}


class Noted(keras.callbacks.Callback):
    """Notes the statistics at the beginning of each batch."""

    def on_train_batch_begin(self, batch, logs=None):
        self.seen = statistics(self.model)


def statistics(model):
    """Return what BatchNorm keeps of the data, by path."""
    return {v.path: keras.ops.convert_to_numpy(v.value) for v in model.non_trainable_variables}


def normalized():
    """Return how statistics of BatchNorm come to the server, and to who joins later."""

    def network_with_statistics():
        keras.utils.set_random_seed(7)
        layers = [
            keras.layers.Dense(4, name="hidden"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.0, name="drop"),
            keras.layers.Dense(1, name="out"),
        ]
        return keras.Sequential([keras.Input((3,)), *layers], name="net")

    model, noted = network_with_statistics(), Noted()
    remote = RemoteOptimizer(
        keras.optimizers.SGD(0.05),
        model=f"{BACKEND}-norm",
        url=URL,
        state=model.non_trainable_variables,
    )
    model.compile(optimizer=remote, loss="mse")
    model.fit(DATA, TARGETS, callbacks=[KeepState("batch"), noted], **FIT)
    alone = network_with_statistics()
    alone.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    alone.fit(DATA, TARGETS, **FIT)
    pulled = remote.remote.pull()
    expected = noted.seen if BACKEND == "jax" else statistics(model)
    later = network_with_statistics()
    joined = RemoteOptimizer(
        "sgd", model=f"{BACKEND}-norm-later", url=URL, state=later.non_trainable_variables
    )
    joined.build(later.trainable_variables)
    other = network_with_statistics()
    for variable in other.non_trainable_variables:
        if "norm" in variable.path:
            variable.assign(variable.value * 0 + 9)
    again = RemoteOptimizer(
        "sgd",
        model=f"{BACKEND}-norm-later",
        worker="w1",
        url=URL,
        state=other.non_trainable_variables,
    )
    again.build(other.trainable_variables)
    names = [path for path in expected if "norm" in path]
    found = {
        "names": sorted(names),
        "is_sent": all((pulled[path] == expected[path]).all() for path in names),
        "is_joined": all(
            (statistics(other)[path] == statistics(later)[path]).all() for path in names
        ),
        "apart": max(
            float(np.abs(a - b).max())
            for a, b in zip(model.get_weights(), alone.get_weights(), strict=True)
        ),
    }
    for optimizer in (remote, joined, again):
        optimizer.close()
    return found


def refused():
    """Return what a fit raises when its model was deleted, and whether the network lives on."""
    name = f"{BACKEND}-deleted"
    remote = RemoteOptimizer("sgd", model=name, url=URL)
    model = network()
    model.compile(optimizer=remote, loss="mse")
    model.fit(DATA, TARGETS, **FIT)
    trained = model.get_weights()
    with stepwell.Client(URL) as client:
        client.delete_model(name)
    try:
        model.fit(DATA, TARGETS, **FIT)
        raised = None
    except stepwell.StepwellError as error:
        raised = type(error).__name__
    remote.close()
    is_whole = all((a == b).all() for a, b in zip(trained, model.get_weights(), strict=True))
    return {"raised": raised, "is_whole": is_whole}


def scheduled():
    """Return the learning rate of the server when a callback of Keras changed it."""
    remote = RemoteOptimizer(keras.optimizers.SGD(0.5), model=f"{BACKEND}-rate", url=URL)
    fitted(remote, [keras.callbacks.LearningRateScheduler(lambda epoch: 0.25 / (epoch + 1))])
    rate = remote.remote.optimizer().learning_rate
    remote.close()
    return rate


print(
    json.dumps(
        {
            "backend": BACKEND,
            "momentum": difference(
                lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True), "momentum"
            ),
            "adam": difference(
                lambda: keras.optimizers.Adam(
                    keras.optimizers.schedules.ExponentialDecay(0.02, 5, 0.9),
                    weight_decay=0.01,
                    global_clipnorm=1.0,
                ),
                "adam",
            ),
            "average": difference(
                lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9), "average"
            ),
            "epochs": pulled_by_epoch(),
            "refused": refused(),
            "rate": scheduled(),
            "normalized": normalized(),
        }
    )
)
