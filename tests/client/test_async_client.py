"""`AsyncClient` keeps the contract, and what only tasks can show."""

from __future__ import annotations

import asyncio
import tracemalloc

import numpy as np
import stepwell

from tests.client.contract import ClientContract
from tests.client.models import ONES, PARAMETERS, assert_same


class TestAsyncClient(ClientContract):
    """See `contract.py`."""

    kind = "AsyncClient"


def test_many_workers_are_tasks_of_one_loop(server):
    """While one waits for the barrier the others go on, in one thread."""

    async def train(model, index):
        async with model.worker(f"w{index}") as worker:
            for _ in range(3):
                parameters = await worker.push_pull(ONES)
        return parameters

    async def main():
        async with stepwell.AsyncClient(server.url) as client:
            model = await client.create_model(
                "tasks", PARAMETERS, optimizer=stepwell.SGD(1.0), consistency=stepwell.Sync(4)
            )
            return await asyncio.gather(*(train(model, index) for index in range(4)))

    pulled = asyncio.run(main())

    for parameters in pulled:
        assert_same(parameters, {name: array - 3 for name, array in PARAMETERS.items()})


def test_two_pushes_of_one_worker_at_once_are_refused_and_none_is_lost(server):
    """They would share a sequence number, and the second gradient would count as a repetition."""

    async def main():
        async with stepwell.AsyncClient(server.url) as client:
            model = await client.create_model("at-once", PARAMETERS, optimizer=stepwell.SGD(1.0))
            async with model.worker("w0") as worker:
                told = await asyncio.gather(
                    worker.push(ONES), worker.push(ONES), return_exceptions=True
                )
                return told, await model.pull()

    (first, second), parameters = asyncio.run(main())

    assert first.outcome == "applied"
    assert isinstance(second, stepwell.errors.PushInFlight)
    assert_same(parameters, {name: array - 1 for name, array in PARAMETERS.items()})


def test_a_large_push_is_not_copied(server):
    """64 MB of gradients are sent as views, as by the blocking client."""
    gradients = {"w": np.zeros(16 << 20, np.float32)}

    async def main():
        async with stepwell.AsyncClient(server.url) as client:
            model = await client.create_model("large", gradients, optimizer=stepwell.SGD(1.0))
            async with model.worker("w0") as worker:
                tracemalloc.start()
                await worker.push(gradients)
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
            await client.delete_model("large")
            return peak

    assert asyncio.run(main()) < 8 << 20
