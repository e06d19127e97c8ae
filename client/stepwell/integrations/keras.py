"""Keras 3: an optimizer for `model.compile` whose steps are made by a server, and callbacks.

    optimizer = RemoteOptimizer(keras.optimizers.Adam(1e-3), model="mnist", worker="w0")
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)

Each step pushes the gradients and assigns the parameters that come back; slots, clipping, decay,
schedules and averages are the server's. The names of the tensors are the variables' paths, as
"sequential/dense/kernel". Variables that are not trained, such as the statistics of BatchNorm, go
along as `state`.
"""

from stepwell.integrations.keras_callbacks import KeepState, Pull
from stepwell.integrations.keras_optimizer import RemoteOptimizer

__all__ = ["KeepState", "Pull", "RemoteOptimizer"]
