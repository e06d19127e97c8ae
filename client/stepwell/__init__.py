"""Stepwell's client: what a worker imports.

    import stepwell

    client = stepwell.Client("http://127.0.0.1:8700")
    model = client.create_model("digits", parameters, optimizer=stepwell.Adam(1e-3))
    with model.worker("w0") as worker:
        parameters = worker.pull()
        result = worker.push(gradients)

Optimizers, schedules and consistency modes are plain values that say what the server is to do; this
package computes nothing itself, and needs NumPy, msgpack and httpx alone.
"""

from stepwell.command import quick_to_leave

with quick_to_leave():
    from stepwell_core.consistency import Async, Bounded, Buffered, Quorum, Sync
    from stepwell_core.errors import StepwellError
    from stepwell_core.groups import ParameterGroup
    from stepwell_core.loss_scale import LossScaleOptimizer
    from stepwell_core.optimizers import (
        SGD,
        Adagrad,
        Adam,
        PerPush,
        TorchAdagrad,
        TorchAdam,
        TorchSGD,
    )

    from stepwell import errors, schedules
    from stepwell.async_client import AsyncClient, AsyncModel
    from stepwell.async_worker import AsyncWorker
    from stepwell.client import Client, Model
    from stepwell.history import HistoryEvent, ModelHistory
    from stepwell.pulls import PullOptions
    from stepwell.results import Checkpoint, CheckpointProgress, Parameters, PushResult
    from stepwell.retry import Timeout
    from stepwell.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "Async",
    "AsyncClient",
    "AsyncModel",
    "AsyncWorker",
    "Bounded",
    "Buffered",
    "Checkpoint",
    "CheckpointProgress",
    "Client",
    "HistoryEvent",
    "LossScaleOptimizer",
    "Model",
    "ModelHistory",
    "ParameterGroup",
    "Parameters",
    "PerPush",
    "PullOptions",
    "PushResult",
    "Quorum",
    "StepwellError",
    "Sync",
    "Timeout",
    "TorchAdagrad",
    "TorchAdam",
    "TorchSGD",
    "Worker",
    "__version__",
    "errors",
    "schedules",
]
