"""MXNet's KVStore over ps-lite, `dist_async`, with Adam on the server.

    python -m benchmarks.peers.mxnet_kvstore SIZE

A push returns before it has arrived, so push and pull have one time together. The pull writes into
the array that was pushed as well as into its own, so the gradient is made again before each turn,
which is not timed: training does that anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from benchmarks.peers import ports

KEY = 0
IMPORT = [sys.executable, "-c", "import mxnet"]
"""With its role in the environment, it is the scheduler or the server and serves for ever."""


def main(size: int) -> None:
    address = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(*ports.free())}
    os.environ.update(address, DMLC_NUM_SERVER="1", DMLC_NUM_WORKER="1")
    others = [
        subprocess.Popen(IMPORT, env=dict(os.environ, DMLC_ROLE=role))
        for role in ("scheduler", "server")
    ]
    os.environ["DMLC_ROLE"] = "worker"
    import mxnet

    from benchmarks import adam, turns

    store = mxnet.kv.create("dist_async")
    store.set_optimizer(mxnet.optimizer.Adam(learning_rate=adam.LEARNING_RATE, epsilon=1e-7))
    computed = mxnet.nd.array(adam.gradient(size))
    gradient = mxnet.nd.zeros((size,))
    parameters = mxnet.nd.zeros((size,))
    store.init(KEY, mxnet.nd.array(adam.parameters(size)))

    def compute() -> None:
        gradient[:] = computed
        gradient.wait_to_read()

    def pull() -> Any:
        store.pull(KEY, out=parameters)
        parameters.wait_to_read()
        return parameters.asnumpy()

    def push_pull() -> None:
        store.push(KEY, gradient)
        store.pull(KEY, out=parameters)
        parameters.wait_to_read()

    def training() -> None:
        compute()
        push_pull()

    adam.check(training, pull, computed.asnumpy())
    turn = turns.timed(push_pull, before=compute)
    turns.take({"push_pull": turn}, version=mxnet.__version__)
    for other in others:
        other.kill()
        other.wait()
    os._exit(0)  # MXNet would wait for those two


if __name__ == "__main__":
    main(int(sys.argv[1]))
