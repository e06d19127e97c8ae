"""The callbacks of `stepwell.integrations.keras`: what is done between the steps of a `fit`."""

from __future__ import annotations

from typing import Any

import keras
from stepwell_core.errors import InvalidArgument, shown

from stepwell.integrations.keras_optimizer import RemoteOptimizer


class _Regularly(keras.callbacks.Callback):  # type: ignore[misc]
    """Does something at the beginning of epochs or batches.

    Args:
        at: "epoch" or "batch".
        every: How many of them from one time to the next; >= 1.

    Raises:
        InvalidArgument: They are something else, or the model has another optimizer.
    """

    def __init__(self, at: str = "epoch", every: int = 1) -> None:
        super().__init__()
        if at not in ("epoch", "batch"):
            raise InvalidArgument(f"`at` is 'epoch' or 'batch'. Received: {shown(at)}")
        if type(every) is not int or every < 1:
            raise InvalidArgument(f"`every` is a number >= 1. Received: {shown(every)}")
        self._at, self._every = at, every

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Do it if it is due."""
        if self._at == "epoch" and epoch % self._every == 0:
            self._begin()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Do it if it is due."""
        if self._at == "batch" and batch % self._every == 0:
            self._begin()

    def _begin(self) -> None:
        optimizer = self.model.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):  # as of mixed float16
            optimizer = optimizer.inner_optimizer
        if not isinstance(optimizer, RemoteOptimizer):
            raise InvalidArgument(
                f"`{type(self).__name__}` needs a model compiled with a RemoteOptimizer. Received: "
                f"{type(optimizer).__name__}"
            )
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # the variables are in the compiled step's own state
        self._do(optimizer)

    def _do(self, optimizer: RemoteOptimizer) -> None:
        raise NotImplementedError


class Pull(_Regularly):
    """A callback that pulls at the beginning of epochs or batches; see `at` and `every`.

    For `RemoteOptimizer(pulls=False)`, which pushes at each step and pulls at none.
    """

    def _do(self, optimizer: RemoteOptimizer) -> None:
        optimizer.pull()


class KeepState(_Regularly):
    """A callback that sends `RemoteOptimizer(state=...)` at the beginning of epochs or batches.

    For JAX, whose compiled step keeps the statistics to itself; elsewhere each push has them.
    """

    def _do(self, optimizer: RemoteOptimizer) -> None:
        optimizer.keep_state()
