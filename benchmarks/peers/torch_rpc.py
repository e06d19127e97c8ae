"""torch.distributed.rpc over TensorPipe: a remote object holds the parameter and a fused Adam.

python -m benchmarks.peers.torch_rpc SIZE SMALL_SIZE
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
import torch.distributed.rpc as rpc

from benchmarks import adam, turns
from benchmarks.peers import ports

NAMES = ("server", "worker")


class Server:
    """Parameters and their optimizer, in the process that calls `rpc.remote`."""

    def __init__(self, size: int) -> None:
        self.parameter = torch.nn.Parameter(torch.from_numpy(adam.parameters(size)))
        self.optimizer = torch.optim.Adam([self.parameter], lr=adam.LEARNING_RATE, fused=True)

    def push(self, gradient: torch.Tensor) -> int:
        self.parameter.grad = gradient
        self.optimizer.step()
        return 1

    def pull(self) -> torch.Tensor:
        return self.parameter.detach()


def join(rank: int, port: int) -> None:
    """Join the group; the server's rank is 0."""
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"tcp://127.0.0.1:{port}")
    rpc.init_rpc(NAMES[rank], rank=rank, world_size=2, rpc_backend_options=options)


def remote(size: int) -> tuple[Any, torch.Tensor]:
    """Return a server of so many parameters in the other process, and a gradient for it."""
    server = rpc.remote(NAMES[0], Server, args=(size,))
    gradient = torch.from_numpy(adam.gradient(size))
    adam.check(lambda: server.rpc_sync().push(gradient), lambda: server.rpc_sync().pull(), gradient)
    return server, gradient


def offer(size: int, small_size: int) -> None:
    """Take turns with two servers, which nobody knows any more afterwards."""
    server, gradient = remote(size)
    small_server, small_gradient = remote(small_size)
    turns.take(
        {
            "push": turns.timed(lambda: server.rpc_sync().push(gradient)),
            "pull": turns.timed(lambda: server.rpc_sync().pull()),
            "small": turns.timed(lambda: small_server.rpc_sync().push(small_gradient), 100),
        },
        version=torch.__version__,
    )


def main(size: int, small_size: int) -> None:
    (port,) = ports.free()
    other = subprocess.Popen([sys.executable, "-m", "benchmarks.peers.torch_rpc", str(port)])
    join(1, port)
    offer(size, small_size)
    rpc.shutdown()  # waits for the other one
    other.wait()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        join(0, int(sys.argv[1]))
        rpc.shutdown()
    else:
        main(*map(int, sys.argv[1:]))
