"""DiLoCo: AdamW on each worker, Nesterov momentum on the server, and little to send.

Each worker makes many steps of its own AdamW, then pushes what they changed; the server takes the
mean of these as a gradient and makes one step of SGD with Nesterov momentum (Douillard et al.,
2023, "DiLoCo: Distributed Low-Communication Training of Language Models"). With 50 local steps the
parameters travel once where they would otherwise travel fifty times.

Reaches an accuracy of 0.97 on held-out images, in a few seconds.

pip install "stepwell[server,demo]"
stepwell serve &
python examples/diloco.py
"""

import os
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # or the workers' matrices fight for the cores

import numpy as np
import stepwell
from stepwell_server.demo.digits import batch, load_digits_split
from stepwell_server.demo.network import accuracy, initial_parameters, loss_and_gradients

WORKERS, ROUNDS, LOCAL_STEPS, BATCH = 4, 12, 50, 32

digits = load_digits_split()
client = stepwell.Client()
model = client.create_model(
    "diloco",
    initial_parameters(seed=0),
    optimizer=stepwell.SGD(learning_rate=0.7, momentum=0.9, nesterov=True),
    consistency=stepwell.Sync(workers=WORKERS),
    exist_ok=True,
)


class AdamW:
    """The inner optimizer (Loshchilov and Hutter, 2019); its moments stay on the worker."""

    def __init__(self, rate: float = 1e-3, beta_1: float = 0.9, beta_2: float = 0.999) -> None:
        self.rate, self.beta_1, self.beta_2, self.steps = rate, beta_1, beta_2, 0
        self.m: dict[str, np.ndarray] = {}
        self.v: dict[str, np.ndarray] = {}

    def step(self, parameters: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> None:
        """Change the parameters in place."""
        self.steps += 1
        rate = self.rate * (1 - self.beta_2**self.steps) ** 0.5 / (1 - self.beta_1**self.steps)
        for name, g in gradients.items():
            m = self.m[name] = self.beta_1 * self.m.get(name, 0.0) + (1 - self.beta_1) * g
            v = self.v[name] = self.beta_2 * self.v.get(name, 0.0) + (1 - self.beta_2) * g * g
            parameters[name] *= 1 - self.rate * 0.1  # weight decay 0.1, apart from the gradient
            parameters[name] -= rate * m / (np.sqrt(v) + 1e-8)


def train(index: int) -> None:
    """Be one worker."""
    inner = AdamW()
    with model.worker(f"w{index}") as worker:
        for _ in range(ROUNDS):
            local = {name: array.copy() for name, array in worker.pull().items()}
            for _ in range(LOCAL_STEPS):
                images, labels = batch(digits, 0, index, inner.steps, BATCH)
                _, gradients = loss_and_gradients(local, images, labels)
                inner.step(local, gradients)
            worker.push_delta(local)


with ThreadPoolExecutor(WORKERS) as pool:
    list(pool.map(train, range(WORKERS)))

parameters = model.pull()
reached = accuracy(parameters, digits.test_images, digits.test_labels)
print(f"accuracy {reached:.3f} after {ROUNDS} rounds of {LOCAL_STEPS} local steps")
