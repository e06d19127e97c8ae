"""A restore that is answered with an error leaves one history, and what was answered is in it.

The checkpoint of the new history is there before the model becomes it; so whatever fails then has
to take it away again, or to stop the model if that is not certain.
"""

from __future__ import annotations

import errno
import os

import pytest
from stepwell_core.definition import Definition
from stepwell_core.errors import InternalError, ModelReadOnly, StepwellError, StoreFailed
from stepwell_core.optimizers import Adam
from stepwell_core.push import Push
from stepwell_server.storage import checkpoint, disk
from stepwell_server.storage.disk import System
from stepwell_server.storage.stores import Unsettled, open_store

from tests.server.registries import LAYOUT, created, look, looked, push, run, tick


class FailingFolder(System):
    """Fails to sync the folder of checkpoints, so many times from when it is told to."""

    failures = 0

    def sync(self, descriptor):
        if self.failures and os.readlink(f"/proc/self/fd/{descriptor}").endswith("/checkpoints"):
            self.failures -= 1
            raise OSError(errno.EIO, "Input/output error")
        super().sync(descriptor)


@pytest.fixture
def failing(monkeypatch):
    """Put such a disk in place."""
    system = FailingFolder()
    monkeypatch.setattr(disk, "system", system)
    return system


def restores_in_vain(registry_is_ready, pushes_after=5):
    """Return a scenario: a restore fails, as `registry_is_ready` arranges, and pushes follow."""

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        made = await model.checkpoint()
        await push(model, "a", 2)
        registry_is_ready()
        with pytest.raises((OSError, StepwellError)) as raised:
            await model.restore(made.id)
        try:
            await push(model, "b", pushes_after)
        except ModelReadOnly as error:
            return await look(registry), raised.value, error
        return await look(registry), raised.value, None

    return scenario


def test_a_new_history_whose_name_could_not_be_synced_is_taken_away_again(tmp_path, failing):
    """The pushes that follow are of the old one, and so is what a start finds."""

    def fail():
        failing.failures = 1

    before, _, refused = run(tmp_path, restores_in_vain(fail), is_clean=False, durability="always")
    after, recovered = run(tmp_path, looked, is_clean=False, durability="always")

    assert refused is None
    assert after == before
    assert (after[1], recovered.is_whole) == (10, True)


def test_a_new_history_that_cannot_be_taken_away_stops_the_model(tmp_path, failing):
    """A start may take it, so nothing more is answered in the old one."""

    def fail():
        failing.failures = 2

    before, error, refused = run(
        tmp_path, restores_in_vain(fail), is_clean=False, durability="always"
    )
    after = run(tmp_path, look, durability="always")

    assert isinstance(error, Unsettled)
    assert "may be there at the next start" in refused.message
    assert before[1] == 5
    assert after[1] in (5, 6)


@pytest.mark.parametrize(
    "error", [StoreFailed("cannot be reached"), MemoryError(), OSError(5, "x")]
)
def test_a_new_history_that_cannot_be_read_back_is_taken_away_again(tmp_path, monkeypatch, error):
    """Whatever the reason."""

    def fail(*arguments):
        monkeypatch.undo()
        raise error

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        made = await model.checkpoint()
        monkeypatch.setattr(checkpoint, "verify", fail)
        with pytest.raises(type(error)):
            await model.restore(made.id)
        await push(model, "b", 5)
        return await look(registry)

    store = open_store("memory://test")
    before = run(tmp_path, scenario, is_clean=False, durability="always", store=store)
    after = run(tmp_path, look, is_clean=False, durability="always", store=store)

    assert after == before
    assert after[1] == 8


async def _adam(registry):
    """Create a model with slots, and return it with its first five pushes."""
    made = Definition("m", LAYOUT, Adam(0.1, name="adam"))
    model, _ = await registry.create(made, None, exist_ok=False)
    session, _, incarnation, _ = await model.sessions.open("a")
    pushes = [Push("a", session.epoch, n, incarnation, tick()) for n in range(5)]
    return model, pushes


def _everything(engine):
    arenas = {"": engine.store.current, **engine.store.slots}
    return {name: held["float32"].tolist() for name, held in arenas.items()}, engine.counters


async def _read(registry):
    return await registry.get("m").read(_everything)


@pytest.mark.parametrize("durability", ["memory", "always"])
def test_a_half_made_change_is_never_saved(tmp_path, durability):
    """Memory ran out inside a step: a restart makes it again from the journal, to the bit."""

    async def whole(registry):
        model, pushes = await _adam(registry)
        for made in pushes:
            await model.push(made)
        return await _read(registry)

    async def half(registry):
        model, pushes = await _adam(registry)
        for made in pushes[:4]:
            await model.push(made)
        last = await _read(registry) if durability == "always" else await _saved(model)

        def fail(source, target, slots, gradient, scalars):
            for arenas in slots.values():
                arenas["float32"][:2] = 77.0
            raise MemoryError

        model.engine.pipeline.apply = fail
        _, held = await model.readers.hold()
        with pytest.raises((MemoryError, InternalError)):
            await model.push(pushes[4])
        model.release(held)
        for refused in (model.checkpoint(), model.sessions.open("b")):
            with pytest.raises(ModelReadOnly, match="do not agree"):
                await refused
        return last

    async def _saved(model):
        await model.checkpoint()
        return await model.read(_everything)

    expected = run(tmp_path / "whole", whole, durability=durability)
    last = run(tmp_path / "half", half, durability=durability)  # also a stop saves nothing of it
    found = run(tmp_path / "half", _read, is_clean=False, durability=durability)

    assert found == (expected if durability == "always" else last)
