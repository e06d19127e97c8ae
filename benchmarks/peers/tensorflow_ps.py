"""TensorFlow's parameter server over gRPC: variables and ResourceApplyAdam on the ps.

python -m benchmarks.peers.tensorflow_ps SIZE
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from benchmarks import adam, turns
from benchmarks.peers import ports

PS, WORKER = "/job:ps/task:0", "/job:worker/task:0"
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-7


class Optimizer(tf.Module):
    """Parameters and their Adam on the ps, for gradients of the worker."""

    def __init__(self, size: int) -> None:
        with tf.device(PS):
            self.parameter = tf.Variable(adam.parameters(size))
            self.momentum = tf.Variable(tf.zeros([size]))
            self.velocity = tf.Variable(tf.zeros([size]))
            self.steps = tf.Variable(0.0)

    @tf.function
    def push(self, gradient: Any) -> Any:
        with tf.device(PS):
            steps = self.steps.assign_add(1.0)
            tf.raw_ops.ResourceApplyAdam(
                var=self.parameter.handle,
                m=self.momentum.handle,
                v=self.velocity.handle,
                beta1_power=tf.pow(BETA_1, steps),
                beta2_power=tf.pow(BETA_2, steps),
                lr=adam.LEARNING_RATE,
                beta1=BETA_1,
                beta2=BETA_2,
                epsilon=EPSILON,
                grad=gradient,
                use_locking=True,
            )
        return tf.constant(1)

    @tf.function
    def pull(self) -> Any:
        with tf.device(WORKER):
            return tf.identity(self.parameter.read_value())


def main(size: int) -> None:
    addresses = [f"127.0.0.1:{port}" for port in ports.free(2)]
    cluster = {"ps": addresses[:1], "worker": addresses[1:]}
    command = [sys.executable, "-m", "benchmarks.peers.tensorflow_ps", json.dumps(cluster)]
    other = subprocess.Popen(command)
    tf.config.experimental_connect_to_cluster(
        tf.train.ClusterSpec(cluster), job_name="worker", task_index=0, protocol="grpc"
    )
    optimizer = Optimizer(size)
    with tf.device(WORKER):
        gradient = tf.constant(adam.gradient(size))

    def push() -> None:
        optimizer.push(gradient).numpy()

    def pull() -> None:
        optimizer.pull()[:1].numpy()  # of the worker's copy, so that all of it has come

    adam.check(push, lambda: optimizer.pull().numpy(), gradient.numpy())
    turns.take({"push": turns.timed(push), "pull": turns.timed(pull)}, version=tf.__version__)
    other.kill()
    other.wait()
    os._exit(0)  # TensorFlow would go on trying to reach the ps


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        spec = tf.train.ClusterSpec(json.loads(sys.argv[1]))
        tf.distribute.Server(spec, job_name="ps", task_index=0, protocol="grpc").join()
    main(int(sys.argv[1]))
