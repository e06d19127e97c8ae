"""What one writes in an afternoon: FastAPI, `await request.body()`, NumPy, httpx.

The body is read whole, Adam is written as in the paper, the answer is `tobytes()`, and the worker
sends and receives `bytes`.
"""

import sys
from typing import Any

import fastapi
import httpx
import numpy as np

from benchmarks import adam
from benchmarks.references import uvicorn_thread


class NaiveClient:
    """A worker of the naive server.

    Args:
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False
        )

    def push(self, gradient: Any) -> None:
        """Push a float32 gradient."""
        self._client.post("/push", content=gradient.tobytes()).raise_for_status()

    def pull(self) -> Any:
        """Return the parameters."""
        answer = self._client.get("/pull").raise_for_status()
        return np.frombuffer(answer.content, np.float32)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Adam:
    """Adam by the paper's formulas, with a new array for each of them."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters
        self.momentum = np.zeros_like(parameters)
        self.velocity = np.zeros_like(parameters)
        self.steps = 0

    def step(self, gradient: Any) -> None:
        self.steps += 1
        self.momentum = 0.9 * self.momentum + 0.1 * gradient
        self.velocity = 0.999 * self.velocity + 0.001 * gradient**2
        momentum = self.momentum / (1 - 0.9**self.steps)
        velocity = self.velocity / (1 - 0.999**self.steps)
        self.parameters = self.parameters - adam.LEARNING_RATE * momentum / (
            np.sqrt(velocity) + 1e-7
        )


def application(size: int) -> fastapi.FastAPI:
    """Return the naive server of so many parameters."""
    app, optimizer = fastapi.FastAPI(), Adam(adam.parameters(size))

    @app.post("/push")
    async def push(request: fastapi.Request) -> dict[str, int]:
        optimizer.step(np.frombuffer(await request.body(), np.float32))
        return {"version": optimizer.steps}

    @app.get("/pull")
    async def pull() -> fastapi.Response:
        return fastapi.Response(optimizer.parameters.tobytes())

    return app


if __name__ == "__main__":
    uvicorn_thread.serve(application(int(sys.argv[1])))
