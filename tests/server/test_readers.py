"""Readers who wait: for a step in place to end, for a version to come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import ShuttingDown, StaleIncarnation
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import SGD
from stepwell_core.pipeline import Gradient
from stepwell_core.push import Push, Staged
from stepwell_server.readers import Readers

LAYOUT = Layout([Tensor("w", (4,), "float32")])
GRADIENT = Gradient(LAYOUT, LAYOUT.new_arenas(1.0))


class Model:
    """An engine and its readers, stepped by hand."""

    def __init__(self) -> None:
        self.engine = Engine.create(Definition("m", LAYOUT, SGD(1.0)), LAYOUT.new_arenas(), "old")
        self.readers = Readers(self.engine)
        self.epoch = self.engine.open_session("w")[0].epoch
        self.sequence = 0

    def step(self) -> None:
        staged = self.engine.stage(Push("w", self.epoch, self.sequence, "old", GRADIENT))
        assert isinstance(staged, Staged)
        self.engine.commit(staged)
        self.sequence += 1
        self.readers.wake()

    def cut(self) -> None:
        self.engine.overwrite({"float32": np.zeros(4, np.float32)}, "new")
        self.readers.incarnation = "new"
        self.readers.wake()


def run(scenario: Callable[[Model], Awaitable[Any]]) -> Any:
    """Run `scenario` on a model, on an event loop of its own; nobody waits afterwards."""

    async def main() -> Any:
        model = Model()
        result = await scenario(model)
        assert not model.readers.is_any_waiting
        return result

    return asyncio.run(main())


async def waiting(model: Model, *arguments: Any) -> asyncio.Task[None]:
    """Return a reader that waits already."""
    task = asyncio.ensure_future(model.readers.wait_for(*arguments))
    await asyncio.sleep(0)
    assert model.readers.is_any_waiting
    return task


def test_a_reader_goes_on_when_its_version_is_there_and_not_before() -> None:
    """Each step wakes those alone who waited for it."""

    async def scenario(model: Model) -> list[bool]:
        first, second = await waiting(model, 1, 60), await waiting(model, 2, 60)
        model.step()
        await first
        before = second.done()
        model.step()
        await second
        return [before, second.done()]

    assert run(scenario) == [False, True]


def test_nobody_waits_for_a_version_that_is_there() -> None:
    """Nor for no time at all."""

    async def scenario(model: Model) -> None:
        model.step()
        await model.readers.wait_for(1, 60)
        await model.readers.wait_for(99, 0)

    run(scenario)


def test_the_time_over_is_no_error() -> None:
    """The reader then takes what there is."""

    async def scenario(model: Model) -> bool:
        await model.readers.wait_for(1, 0.001)
        return model.readers.has(1)

    assert run(scenario) is False


def test_a_hundred_readers_are_woken_by_one_call() -> None:
    """All of them, in one go of the event loop."""

    async def scenario(model: Model) -> int:
        tasks = [await waiting(model, 1, 60) for _ in range(100)]
        model.step()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return sum(task.done() for task in tasks)

    assert run(scenario) == 100


def test_a_step_between_the_look_and_the_wait_is_not_missed(monkeypatch) -> None:
    """The lane asks whether anybody waits, and nobody did yet."""

    async def scenario(model: Model) -> None:
        looks: list[int] = []
        real = Readers.has

        def has(self: Readers, version: int) -> bool:
            looks.append(version)
            found = real(self, version)
            if len(looks) == 1:
                model.step()
            return found

        monkeypatch.setattr(Readers, "has", has)
        async with asyncio.timeout(30):
            await model.readers.wait_for(1, 60)

    run(scenario)


def test_a_cut_of_history_wakes_those_who_named_theirs() -> None:
    """Their number means nothing any more; whoever named none waits on for the number."""

    async def scenario(model: Model) -> bool:
        named, nameless = await waiting(model, 9, 60, "old"), await waiting(model, 2, 60)
        model.cut()
        with pytest.raises(StaleIncarnation) as caught:
            await named
        assert caught.value.details["incarnation"] == "new"
        assert caught.value.details["parameters_version"] == 1
        before = nameless.done()
        model.cut()
        await nameless
        return before

    assert run(scenario) is False


def test_a_reader_of_another_history_is_refused_at_once() -> None:
    """Also if its version is there."""

    async def scenario(model: Model) -> None:
        with pytest.raises(StaleIncarnation):
            await model.readers.wait_for(0, 60, "another")
        with pytest.raises(StaleIncarnation):
            await model.readers.wait_for(9, 60, "another")

    run(scenario)


def test_the_end_refuses_those_who_wait_and_those_who_would() -> None:
    """Who finds what it asks for, or would not wait, is still served."""

    async def scenario(model: Model) -> None:
        task = await waiting(model, 1, 60)
        model.readers.end(ShuttingDown("going"))
        with pytest.raises(ShuttingDown):
            await task
        with pytest.raises(ShuttingDown):
            await model.readers.wait_for(1, 60)
        await model.readers.wait_for(1, 0)
        await model.readers.wait_for(0, 60)

    run(scenario)


def test_a_cancelled_reader_is_forgotten() -> None:
    """Its client has gone."""

    async def scenario(model: Model) -> None:
        task = await waiting(model, 1, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario)


def test_holding_waits_for_a_step_in_place() -> None:
    """And for nothing else: the end of the model is no reason to refuse it."""

    async def scenario(model: Model) -> int:
        model.engine.store.claim()
        task = asyncio.ensure_future(model.readers.hold())
        await asyncio.sleep(0)
        model.readers.wake()
        model.readers.end(ShuttingDown("going"))
        await asyncio.sleep(0)
        assert not task.done()
        model.engine.store.publish(7)
        model.readers.wake()
        _, version = await task
        model.engine.store.release(version)
        return version.number

    assert run(scenario) == 7
