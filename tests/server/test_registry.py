"""The models of one server: created, deleted and recovered, also many at once and after a crash.

In this process, on an event loop of the test's own; crashes are in test_serve.py.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable
from typing import Any

import numpy as np
import pytest
from stepwell_core.consistency import Sync
from stepwell_core.definition import Definition
from stepwell_core.errors import (
    CheckpointInvalid,
    Conflict,
    DataFolderInvalid,
    DoesNotFit,
    ModelDiffers,
    ModelExists,
    ModelNotFound,
    ShuttingDown,
    StepwellError,
    StoreFailed,
)
from stepwell_core.optimizers import SGD
from stepwell_core.pipeline import Gradient
from stepwell_core.placement import extent
from stepwell_core.push import Push
from stepwell_server.model import HostedModel
from stepwell_server.registry import Registry
from stepwell_server.storage.archive import CheckpointArchive
from stepwell_server.storage.folders import ModelFolder
from stepwell_server.storage.stores import open_store

from tests.server.registries import LAYOUT, created, definition, look, looked, push, run


def test_many_who_create_one_model_at_once_create_it_once(tmp_path):
    """With `exist_ok` all get it; without, all but one are refused."""

    async def scenario(registry):
        opened = await asyncio.gather(
            *(registry.create(definition("a"), None, exist_ok=True) for _ in range(8))
        )
        strict = await asyncio.gather(
            *(registry.create(definition("b"), None, exist_ok=False) for _ in range(8)),
            return_exceptions=True,
        )
        return opened, strict

    opened, strict = run(tmp_path, scenario)

    assert len({id(model) for model, _ in opened}) == 1
    assert sum(is_new for _, is_new in opened) == 1
    assert sum(isinstance(result, ModelExists) for result in strict) == 7


def test_another_definition_under_the_same_name_is_refused(tmp_path):
    """Also with `exist_ok`."""

    async def scenario(registry):
        await registry.create(definition(), None, exist_ok=True)
        with pytest.raises(ModelDiffers, match=r"learning_rate is .*, received 0\.5"):
            await registry.create(definition(rate=0.5), None, exist_ok=True)

    run(tmp_path, scenario)


def test_creating_deleting_and_pushing_at_once_never_breaks_anything(tmp_path):
    """Every call is answered by success or by an error of ours, and the folder ends up right."""
    unexpected: list[object] = []

    async def attempt(call: Awaitable[Any]) -> None:
        try:
            await call
        except (ModelExists, ModelNotFound, ShuttingDown):
            pass
        except StepwellError as error:
            if error.code not in ("stale_incarnation", "unknown_session", "fenced"):
                unexpected.append(error)

    async def scenario(registry):
        async def create():
            await registry.create(definition(), None, exist_ok=False)

        async def train(worker):
            await push(registry.get("m"), worker, 3)

        async def save():
            await registry.get("m").checkpoint()

        for _ in range(6):
            calls = [create(), train("a"), save(), registry.delete("m"), create(), train("b")]
            await asyncio.gather(*(attempt(call) for call in calls))
        return [model.definition.name for model in registry]

    names = run(tmp_path, scenario)

    assert unexpected == []
    folders = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert folders == names


def test_a_model_that_could_not_be_saved_at_creation_was_never_there(tmp_path, monkeypatch):
    """No folder, no name taken."""

    async def scenario(registry):
        def fail(*arguments, **options):
            raise OSError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointArchive, "write", fail)
            with pytest.raises(OSError, match="the disk is gone"):
                await registry.create(definition(), None, exist_ok=False)
        left = [path.name for path in tmp_path.iterdir() if path.is_dir()]
        await registry.create(definition(), None, exist_ok=False)
        return left

    assert run(tmp_path, scenario) == []


def test_a_model_whose_store_does_not_let_go_of_it_is_deleted_by_asking_again(
    tmp_path, monkeypatch
):
    """It is gone meanwhile, its name is not free, and nothing of it comes back."""
    store = open_store("memory://test")

    async def scenario(registry):
        await created(registry)
        with monkeypatch.context() as patch:
            patch.setattr(type(store.of_model("m")), "remove_all", _store_fails)
            with pytest.raises(StoreFailed):
                await registry.delete("m")
            with pytest.raises(ModelNotFound):
                registry.get("m")
            with pytest.raises(ModelExists, match="delete it again"):
                await registry.create(definition(), None, exist_ok=True)
        await registry.delete("m")
        with pytest.raises(ModelNotFound):
            await registry.delete("m")
        await registry.create(definition(), None, exist_ok=False)
        return await look(registry)

    assert run(tmp_path, scenario, store=store)[1] == 0
    assert store.of_model("m").ids() == ["000001-v0"]


def test_a_deletion_that_a_crash_cut_short_is_ended_by_the_next_start(tmp_path, monkeypatch):
    """The model does not come back as it was some checkpoints ago."""
    store = open_store("memory://test")

    async def scenario(registry):
        await created(registry)
        monkeypatch.setattr(type(store.of_model("m")), "remove_all", _store_fails)
        with pytest.raises(StoreFailed):
            await registry.delete("m")

    async def names(registry):
        return [model.definition.name for model in registry]

    run(tmp_path, scenario, is_clean=False, durability="always", store=store)
    monkeypatch.undo()

    assert run(tmp_path, names, durability="always", store=store) == []
    assert store.models() == []
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def _store_fails(*arguments):
    raise StoreFailed("The checkpoint store cannot be reached")


def test_a_clean_stop_keeps_everything_and_the_incarnation(tmp_path):
    """As if the server had never stopped: sessions go on with their next push."""
    before = run(tmp_path, created)

    async def scenario(registry):
        found = await look(registry)
        model = registry.get("m")
        session = model.engine.ledger.sessions["w0"]
        gradient = Gradient(LAYOUT, LAYOUT.flatten({"w": np.full(4, -1.0, np.float32)}))
        result = await model.push(Push("w0", session.epoch, 3, found[0], gradient))
        return found, result.version

    after, version = run(tmp_path, scenario)

    assert after == before
    assert after[1:] == (3, [3.0] * 4)
    assert version == 4


def test_a_start_and_stop_without_any_change_writes_no_checkpoint(tmp_path):
    """And the incarnation stays, as often as that is done."""
    first = run(tmp_path, created)

    for _ in range(3):
        assert run(tmp_path, look) == first

    checkpoints = [path.name for path in (tmp_path / "m" / "checkpoints").iterdir()]
    assert sorted(checkpoints) == ["000001-v0", "000002-v3"]


def test_a_stop_that_was_not_clean_goes_back_to_the_checkpoint_with_a_new_incarnation(tmp_path):
    """What came after it is lost, and whoever pushes is told so."""
    before = run(tmp_path, created, is_clean=False)

    after = run(tmp_path, look, is_clean=False)
    again = run(tmp_path, look)

    assert after[1:] == (0, [0.0] * 4)
    assert len({before[0], after[0], again[0]}) == 3


def test_a_crash_after_a_clean_stop_does_not_count_as_clean(tmp_path):
    """The mark is used up by the start."""
    first = run(tmp_path, created)
    second = run(tmp_path, look, is_clean=False)

    third = run(tmp_path, look)

    assert first == second
    assert third[0] != second[0]
    assert third[1:] == second[1:]


@pytest.mark.parametrize("durability", ["memory", "everysec", "always"])
def test_nobody_who_tidies_up_takes_what_a_crash_would_need(tmp_path, durability):
    """The newest checkpoint, which the journal goes on from, stays until there is a newer one."""

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        await model.checkpoint()
        await push(model, "a", 2)
        newest = await model.checkpoint()
        await push(model, "b", 2)
        with pytest.raises(Conflict, match="write another first"):
            await model.checkpoints.remove(newest.id)
        last = await model.checkpoint()
        await model.checkpoints.remove(newest.id)
        return await look(registry), last.id

    before, last = run(tmp_path, scenario, is_clean=False, durability=durability)
    after, recovered = run(tmp_path, looked, is_clean=False, durability=durability)

    assert recovered.checkpoint == last
    assert after[1:] == before[1:] == (7, [7.0] * 4)


def test_a_damaged_newest_checkpoint_is_not_removed_either(tmp_path):
    """Without it a start would not know that it falls back, and refuse for what is missing."""

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        await model.checkpoint()
        newest = (await model.checkpoint()).id
        file = tmp_path / "m" / "checkpoints" / newest / "parameters.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(Conflict, match="write another first"):
            await model.checkpoints.remove(newest)

    run(tmp_path, scenario, is_clean=False, durability="always")

    assert run(tmp_path, look, durability="always")[1] == 3


def test_a_damaged_newest_checkpoint_falls_back_with_a_new_incarnation(tmp_path):
    """Even after a clean stop: history was cut."""
    before = run(tmp_path, created)
    newest = tmp_path / "m" / "checkpoints" / "000002-v3" / "parameters.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])

    after = run(tmp_path, look)

    assert after[1:] == (0, [0.0] * 4)
    assert after[0] != before[0]


def test_a_model_without_a_whole_checkpoint_refuses_the_start_and_nothing_is_changed(tmp_path):
    """The other models keep their clean stop."""
    before = run(tmp_path, created)

    async def other(registry):
        await registry.create(definition("n"), None, exist_ok=False)

    run(tmp_path, other)
    manifest = tmp_path / "n" / "checkpoints" / "000001-v0" / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-1])
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    with pytest.raises(CheckpointInvalid, match="'n' has no checkpoint that is whole"):
        run(tmp_path, look)

    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    files.pop(tmp_path / ".lock")
    after.pop(tmp_path / ".lock")
    assert after == files
    manifest.write_bytes(content)
    assert run(tmp_path, look) == before


def test_a_model_in_a_folder_of_another_name_refuses_the_start(tmp_path):
    """Two models could not be told apart."""
    run(tmp_path, created)
    (tmp_path / "m").rename(tmp_path / "n")

    with pytest.raises(DataFolderInvalid, match="calls itself 'm'"):
        run(tmp_path, look)


def test_a_model_that_cannot_be_saved_does_not_keep_others_from_it(tmp_path, monkeypatch):
    """The stop fails, and only that model is lost back to its last checkpoint."""

    async def two(registry):
        for name in ("a", "b"):
            model, _ = await registry.create(definition(name), None, exist_ok=False)
            await push(model)
        real = HostedModel.checkpoint

        async def fail(model, **options):
            if model.definition.name == "a":
                raise OSError("no room")
            return await real(model, **options)

        monkeypatch.setattr(HostedModel, "checkpoint", fail)

    with pytest.raises(OSError, match="no room"):
        run(tmp_path, two)
    monkeypatch.undo()

    async def versions(registry):
        return [(await look(registry, name))[1] for name in ("a", "b")]

    assert run(tmp_path, versions) == [0, 1]


def test_a_reader_never_takes_older_bytes_for_those_of_a_new_history(tmp_path):
    """Whoever reads in the middle of an overwrite sees the old incarnation, before and after."""

    async def scenario(registry):
        await created(registry)
        model, loop, seen = registry.get("m"), asyncio.get_running_loop(), []
        real = model.engine.adopt

        def look_now():
            incarnation, version = asyncio.run_coroutine_threadsafe(
                model.readers.hold(), loop
            ).result(60)
            seen.append((incarnation, version.number))
            model.release(version)

        def adopt(state, new):
            look_now()
            counters = real(state, new)
            look_now()
            return counters

        model.engine.adopt = adopt
        old = model.engine.incarnation
        new, _ = await model.overwrite({"float32": np.full(4, 9.0, np.float32)})
        return old, new, seen, await look(registry)

    old, new, seen, after = run(tmp_path, scenario)

    assert seen == [(old, 3), (old, 4)]
    assert after == (new, 4, [9.0] * 4)


def test_no_cut_is_made_while_another_is_being_written(tmp_path, monkeypatch):
    """So a later state never gets an earlier name."""
    writing, go, cuts = threading.Event(), threading.Event(), []
    real = CheckpointArchive.write

    def slow(archive, snapshot, number, **options):
        cuts.append(snapshot.counters.version)
        writing.set()
        assert go.wait(60)
        return real(archive, snapshot, number, **options)

    async def scenario(registry):
        await created(registry)
        model = registry.get("m")
        monkeypatch.setattr(CheckpointArchive, "write", slow)
        first = asyncio.create_task(model.checkpoint())
        await asyncio.to_thread(writing.wait, 60)
        second = asyncio.create_task(model.checkpoint())
        for _ in range(50):  # time enough for the second to come as far as it may
            await asyncio.to_thread(lambda: None)
            await model.read(lambda engine: None)
        in_between = len(cuts)
        go.set()
        return in_between, [(await first).id, (await second).id]

    in_between, ids = run(tmp_path, scenario)

    assert in_between == 1
    assert ids == ["000002-v3", "000003-v3"]


def test_the_memory_of_a_gradient_that_was_added_is_free_while_its_push_waits(tmp_path):
    """So the server needs one sum and not as many gradients as there are workers."""

    async def scenario(registry):
        consistency = Sync(2, reduction="arrival")
        added = Definition("m", LAYOUT, SGD(1.0), consistency=consistency)
        model, _ = await registry.create(added, None, exist_ok=False)
        session, _, incarnation, _ = await model.sessions.open("w0")
        await model.sessions.open("w1")
        gradient = Gradient(LAYOUT, LAYOUT.new_arenas(-1.0))
        kept = weakref.ref(gradient.arenas["float32"])
        waits = asyncio.ensure_future(
            model.push(Push("w0", session.epoch, 0, incarnation, gradient))
        )
        del gradient
        while not await model.read(lambda engine: list(engine.policy.waiting)):
            pass
        await asyncio.to_thread(lambda: None)  # the lane's thread has left the job
        is_waiting, memory = not waits.done(), kept()
        await push(model, "w1")
        await waits
        return is_waiting, memory

    assert run(tmp_path, scenario) == (True, None)


SYNC = Definition("s", LAYOUT, SGD(1.0, name="sgd"), consistency=Sync(2))


def test_a_model_whose_barrier_does_not_fit_into_the_staging_is_refused(tmp_path):
    """One gradient for each worker and one of the largest model; nothing stays reserved."""
    unit = extent(LAYOUT)

    async def create(registry: Registry) -> None:
        with pytest.raises(DoesNotFit) as refusal:
            await registry.create(SYNC, None, exist_ok=False)
        assert (refusal.value.details["needed"], list(registry)) == (3 * unit, [])
        await registry.create(definition(), None, exist_ok=False)

    run(tmp_path, create, budget=2 * unit)


def test_a_model_that_does_not_fit_into_the_staging_any_more_is_recovered_with_a_warning(
    tmp_path, capsys
):
    """It shares what is not reserved: better slow than gone."""

    async def create(registry: Registry) -> None:
        await registry.create(SYNC, None, exist_ok=False)

    async def use(registry: Registry) -> list[str]:
        model = registry.get("s")
        assert model.part is registry._staging.shared
        await registry.delete("s")
        return [hosted.definition.name for hosted in registry]

    run(tmp_path, create)
    found = run(tmp_path, use, budget=2 * extent(LAYOUT))

    assert found == []
    assert "staging_too_small" in capsys.readouterr().out


def test_a_create_that_fails_gives_its_reserve_back(tmp_path, monkeypatch):
    """Whatever it fails of."""

    async def create(registry: Registry) -> int:
        monkeypatch.setattr(ModelFolder, "show", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await registry.create(SYNC, None, exist_ok=False)
        return registry._staging.shared.capacity

    assert run(tmp_path, create, budget=1 << 20) == 1 << 20
