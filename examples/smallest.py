"""The smallest useful program: one worker fits a line through a server.

stepwell serve &
python examples/smallest.py
"""

import numpy as np
import stepwell

rng = np.random.default_rng(0)
x = rng.uniform(-1, 1, (256, 1)).astype(np.float32)
y = 3 * x - 2 + 0.01 * rng.standard_normal((256, 1)).astype(np.float32)

client = stepwell.Client()
model = client.create_model(
    "line",
    {"slope": np.zeros((1, 1), np.float32), "offset": np.zeros(1, np.float32)},
    optimizer=stepwell.Adam(learning_rate=0.1),
    exist_ok=True,
)
with model.worker("w0") as worker:
    parameters = worker.pull()
    for _ in range(200):
        error = x @ parameters["slope"] + parameters["offset"] - y
        gradients = {"slope": 2 * x.T @ error / len(x), "offset": 2 * error.mean(axis=0)}
        parameters = worker.push_pull(gradients)

slope, offset = parameters["slope"].item(), parameters["offset"].item()
print(f"y = {slope:.2f} x {offset:+.2f} at version {parameters.version}")
