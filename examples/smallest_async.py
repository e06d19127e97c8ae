"""The smallest useful program with asyncio: four workers in one process fit a line.

stepwell serve &
python examples/smallest_async.py
"""

import asyncio

import numpy as np
import stepwell

WORKERS = 4


async def train(model: stepwell.AsyncModel, index: int) -> None:
    """Fit the worker's own share of the points."""
    rng = np.random.default_rng(index)
    x = rng.uniform(-1, 1, (64, 1)).astype(np.float32)
    y = 3 * x - 2 + 0.01 * rng.standard_normal((64, 1)).astype(np.float32)
    async with model.worker(f"w{index}") as worker:
        parameters = await worker.pull()
        for _ in range(200):
            error = x @ parameters["slope"] + parameters["offset"] - y
            gradients = {"slope": 2 * x.T @ error / len(x), "offset": 2 * error.mean(axis=0)}
            parameters = await worker.push_pull(gradients)


async def main() -> None:
    """Create the model, run all workers, look at the result."""
    async with stepwell.AsyncClient() as client:
        model = await client.create_model(
            "line-async",
            {"slope": np.zeros((1, 1), np.float32), "offset": np.zeros(1, np.float32)},
            optimizer=stepwell.Adam(learning_rate=0.1),
            consistency=stepwell.Sync(workers=WORKERS),
            exist_ok=True,
        )
        await asyncio.gather(*(train(model, index) for index in range(WORKERS)))
        parameters = await model.pull()
        slope, offset = parameters["slope"].item(), parameters["offset"].item()
        print(f"y = {slope:.2f} x {offset:+.2f} at version {parameters.version}")


asyncio.run(main())
