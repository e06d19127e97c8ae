"""A Ray actor on the same host: arrays travel through the object store, in shared memory.

    python -m benchmarks.peers.ray_actor SIZE SMALL_SIZE

The pulled array is a view of the object store; the actor copies the parameters into it. The small
call carries a small gradient and makes no step: the least that a call of an actor costs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import torch

from benchmarks import adam, turns

STORE_BYTES = 2 << 30


@ray.remote
class Server:
    """Parameters and their optimizer."""

    def __init__(self, size: int) -> None:
        warnings.simplefilter("ignore")  # the gradient is read-only, and nobody writes to it
        self.parameter = torch.nn.Parameter(torch.from_numpy(adam.parameters(size)))
        self.optimizer = torch.optim.Adam([self.parameter], lr=adam.LEARNING_RATE, fused=True)

    def push(self, gradient: Any) -> int:
        self.parameter.grad = torch.from_numpy(gradient)
        self.optimizer.step()
        return 1

    def pull(self) -> Any:
        return self.parameter.detach().numpy()

    def take(self, _gradient: Any) -> int:
        return 1


def main(size: int, small_size: int) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=STORE_BYTES,
            _temp_dir=folder,
        )
        server = Server.remote(size)
        gradient, small = adam.gradient(size), adam.gradient(small_size)

        def push() -> None:
            ray.get(server.push.remote(gradient))

        def pull() -> Any:
            return ray.get(server.pull.remote())

        adam.check(push, pull, gradient)
        turns.take(
            {
                "push": turns.timed(push),
                "pull": turns.timed(pull),
                "small": turns.timed(lambda: ray.get(server.take.remote(small)), 100),
            },
            version=ray.__version__,
        )
        ray.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
