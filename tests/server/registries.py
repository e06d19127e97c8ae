"""Registries on an event loop of the test's own, whose stops are clean or are none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from stepwell_core.definition import Definition
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import SGD
from stepwell_core.pipeline import Gradient
from stepwell_core.push import Push
from stepwell_server.checkpoints import Schedule
from stepwell_server.counts import Counts
from stepwell_server.model import HostedModel
from stepwell_server.registry import ModelOptions, Registry
from stepwell_server.settings import Durability
from stepwell_server.staging import Staging
from stepwell_server.storage.folders import DataFolder
from stepwell_server.storage.stores import CheckpointStore

LAYOUT = Layout([Tensor("w", (4,), "float32")])

Scenario = Callable[[Registry], Awaitable[Any]]


def definition(name: str = "m", rate: float = 1.0) -> Definition:
    """Return a model whose parameters count its pushes."""
    return Definition(name, LAYOUT, SGD(rate, name="sgd"))


def run(
    path: Path,
    scenario: Scenario,
    *,
    is_clean: bool = True,
    budget: int = 1 << 20,
    durability: Durability = "memory",
    journal_max_bytes: int | None = None,
    schedule: Schedule | None = None,
    store: CheckpointStore | None = None,
) -> Any:
    """Recover what is in a folder, run `scenario` on it, and stop, cleanly or not at all."""

    async def main() -> Any:
        data = DataFolder(path, store)
        options = ModelOptions(20.0, durability, journal_max_bytes, schedule or Schedule())
        registry = Registry(data, options, Staging(budget, Counts()))
        try:
            await registry.recover()
            result = await scenario(registry)
            if is_clean:
                await registry.stop()
            else:
                for model in registry:
                    await model.discard()
            return result
        finally:
            data.release()

    return asyncio.run(main())


def tick(value: float = -1.0) -> Gradient:
    """Return the gradient that makes every element one larger."""
    return Gradient(LAYOUT, LAYOUT.flatten({"w": np.full(4, value, np.float32)}))


async def push(model: HostedModel, worker: str = "w0", count: int = 1) -> list[int]:
    """Open a session and push so many times; returns the versions."""
    session, _, incarnation, _ = await model.sessions.open(worker)
    results = []
    for sequence in range(count):
        made = Push(worker, session.epoch, sequence, incarnation, tick())
        results.append(await model.push(made))
    return [result.version for result in results]


async def look(registry: Registry, name: str = "m") -> tuple[str, int, list[float]]:
    """Return incarnation, version and parameters."""
    model = registry.get(name)
    incarnation, version = await model.readers.hold()
    values = version.arenas["float32"].tolist()
    model.release(version)
    return incarnation, model.engine.counters.version, values


async def created(registry: Registry) -> tuple[str, int, list[float]]:
    """Create a model and push to it three times."""
    model, _ = await registry.create(definition(), None, exist_ok=False)
    await push(model, count=3)
    return await look(registry)


async def looked(registry: Registry) -> tuple[tuple[str, int, list[float]], Any]:
    """Return what `look` does, and how the model came back."""
    return await look(registry), registry.get("m").recovered


def damage_newest_checkpoint(path: Path) -> None:
    """Flip a bit of the parameters in the newest checkpoint of model "m"."""
    newest = sorted((path / "m" / "checkpoints").iterdir())[-1] / "parameters.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
