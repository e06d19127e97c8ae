"""Pushes that wait, when the step they wait for cannot be decided."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from stepwell_core.aggregation import RunningSum
from stepwell_core.consistency import Sync
from stepwell_core.definition import Definition
from stepwell_core.errors import Unavailable
from stepwell_core.optimizers import SGD
from stepwell_core.push import Push

from tests.server.registries import LAYOUT, run, tick

DEADLINE_S = 10.0
"""Less than a push waits for others, so that nobody is answered just because that is over."""


async def hosted(registry, workers):
    """Return a model with a barrier, and the first push of each worker."""
    definition = Definition("m", LAYOUT, SGD(1.0, name="sgd"), consistency=Sync(len(workers)))
    model, _ = await registry.create(definition, None, exist_ok=False)
    pushes = []
    for number, worker in enumerate(workers):
        session, _, incarnation, _ = await model.sessions.open(worker)
        pushes.append(Push(worker, session.epoch, 0, incarnation, tick(-1.0 - number)))
    return model, pushes


async def waiting(model, push):
    """Start a push, and return when the model has it and lets it wait."""
    task = asyncio.create_task(model.push(push))
    async with asyncio.timeout(DEADLINE_S):
        while push.worker not in model.pushes.waiting_workers:
            await asyncio.sleep(0.005)
    return task


async def refused(task):
    """Return that a push is to be sent again, and is told so at once."""
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(Unavailable):
            await task
    return True


def test_who_waited_for_a_step_that_memory_ran_out_for_comes_again_and_counts_once(
    tmp_path, monkeypatch
):
    """Nothing of the half of a sum is left."""

    async def scenario(registry):
        model, (first, second) = await hosted(registry, ["w0", "w1"])
        waits = await waiting(model, first)
        add = RunningSum.add

        def fails(*arguments, **options):
            add(*arguments, **options)
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(RunningSum, "add", fails)
            with pytest.raises(MemoryError):
                await model.push(second)
        told = await refused(waits)
        again = await asyncio.gather(model.push(first), model.push(second))
        parameters = np.array(model.engine.store.current["float32"])
        return told, [result.outcome for result in again], parameters.tolist()

    assert run(tmp_path, scenario) == (True, ["applied"] * 2, [1.5] * 4)


def test_who_waited_for_a_due_step_that_cannot_be_decided_is_told_at_once(tmp_path, monkeypatch):
    """And the memory of its gradient is let go of."""

    async def scenario(registry):
        model, (first, _) = await hosted(registry, ["w0", "w1"])
        waits = await waiting(model, first)

        def fails():
            model.engine._forget_waiting()
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(model.engine, "stage_due", fails)
            with pytest.raises(MemoryError):
                await model.sessions.open("w2")
        return await refused(waits), model.pushes.waiting_workers

    assert run(tmp_path, scenario) == (True, frozenset())
