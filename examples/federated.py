"""Federated averaging: four sites train on images that never leave them.

Each round, every site pulls the parameters, makes local steps on its own images and pushes what
they changed. The server takes the mean, each site weighted by how many images it has (McMahan et
al., 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data"). The sites
differ, as hospitals do: each has about half of the digits, and only together they know all.

Reaches an accuracy of 0.96 on held-out images, in a few seconds.

pip install "stepwell[server,demo]"
stepwell serve &
python examples/federated.py
"""

import os
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # or the workers' matrices fight for the cores

import numpy as np
import stepwell
from stepwell_server.demo.digits import load_digits_split
from stepwell_server.demo.network import accuracy, initial_parameters, loss_and_gradients

SITES, ROUNDS, LOCAL_STEPS, BATCH, LOCAL_RATE = 4, 30, 20, 32, np.float32(0.3)

digits = load_digits_split()
client = stepwell.Client()
model = client.create_model(
    "federated",
    initial_parameters(seed=0),
    optimizer=stepwell.SGD(learning_rate=1.0),  # w - 1.0 * -mean(delta): the mean of the sites
    consistency=stepwell.Sync(workers=SITES),
    exist_ok=True,
)


def train(site: int) -> None:
    """Be one site: its images, its local steps."""
    random = np.random.default_rng(site)
    shares = np.array_split(np.argsort(digits.train_labels, kind="stable"), 3 * SITES)
    rows = np.concatenate(shares[site::SITES])  # three shares, each of one digit or two
    images, labels = digits.train_images[rows], digits.train_labels[rows]
    with model.worker(f"site-{site}") as worker:
        for _ in range(ROUNDS):
            local = {name: array.copy() for name, array in worker.pull().items()}
            for _ in range(LOCAL_STEPS):
                batch = random.choice(len(rows), BATCH)
                _, gradients = loss_and_gradients(local, images[batch], labels[batch])
                for name, gradient in gradients.items():
                    local[name] -= LOCAL_RATE * gradient
            worker.push_delta(local, weight=len(rows))


with ThreadPoolExecutor(SITES) as pool:
    list(pool.map(train, range(SITES)))

parameters = model.pull()
reached = accuracy(parameters, digits.test_images, digits.test_labels)
print(f"accuracy {reached:.3f} after {ROUNDS} rounds of {LOCAL_STEPS} local steps")
