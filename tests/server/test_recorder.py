"""Nothing is made, shown or answered before it is written down; what cannot be is not made."""

from __future__ import annotations

import asyncio
import threading

import pytest
from stepwell_core.consistency import Async, Sync
from stepwell_core.definition import Definition
from stepwell_core.errors import DiskFull, ModelReadOnly, PayloadMismatch, Unavailable
from stepwell_core.optimizers import SGD
from stepwell_core.push import Push, Staged
from stepwell_server.storage.journal import Journal

from tests.server.registries import LAYOUT, definition, look, push, run, tick

FULL = DiskFull("The disk has no room")
FAILED = ModelReadOnly("The disk failed")


async def new_model(registry, **fields):
    """Create a model."""
    made = Definition("m", LAYOUT, SGD(1.0, name="sgd"), **fields)
    model, _ = await registry.create(made, None, exist_ok=False)
    return model


async def opened(model, *workers):
    """Open sessions; return the first push of each."""
    pushes = []
    for worker in workers:
        session, _, incarnation, _ = await model.sessions.open(worker)
        pushes.append(Push(worker, session.epoch, 0, incarnation, tick()))
    return pushes


def test_pushes_that_come_while_the_disk_is_busy_share_the_next_sync(tmp_path, monkeypatch):
    """None is answered or seen before it; then all are, in order."""
    go, calls, real = threading.Event(), [], Journal.sync

    def slow(journal):
        calls.append(journal.next_number)
        assert go.wait(60)
        real(journal)

    async def scenario(registry):
        model = await new_model(registry)
        pushes = await opened(model, *(f"w{n}" for n in range(9)))
        monkeypatch.setattr(Journal, "sync", slow)
        made = [asyncio.ensure_future(model.push(push)) for push in pushes]
        while not calls:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
        unseen = (await look(registry))[1:], [future.done() for future in made]
        go.set()
        versions = [(await future).version for future in made]
        count = len(calls)
        monkeypatch.undo()
        return unseen, versions, count, (await look(registry))[1:]

    unseen, versions, count, after = run(tmp_path, scenario, durability="always")

    assert unseen == ((0, [0.0] * 4), [False] * 9)
    assert versions == list(range(1, 10))
    assert count <= 2  # one for the first, one for all that came meanwhile
    assert after == (9, [9.0] * 4)


def test_a_repetition_of_a_push_that_is_not_synced_yet_waits_for_it(tmp_path):
    """And has its effect once."""

    async def scenario(registry):
        model = await new_model(registry)
        (first,) = await opened(model, "w0")
        results = await asyncio.gather(*(model.push(first) for _ in range(3)))
        return sorted(result.duplicate for result in results), (await look(registry))[1]

    assert run(tmp_path, scenario, durability="always") == ([False, True, True], 1)


@pytest.mark.parametrize("durability", ["everysec", "always"])
def test_a_full_disk_changes_nothing_and_the_next_push_may_fit(tmp_path, monkeypatch, durability):
    """The push is refused with what to do; sent again, with the same number, it is made."""

    async def scenario(registry):
        model = await new_model(registry)
        (first,) = await opened(model, "w0")
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", lambda *arguments, **options: raising(FULL))
            with pytest.raises(DiskFull):
                await model.push(first)
            with pytest.raises(DiskFull):
                await model.sessions.open("w1")
            with pytest.raises(DiskFull):
                await model.finalize()
        between = await look(registry)
        return between[1:], (await model.push(first)).version

    assert run(tmp_path, scenario, durability=durability) == ((0, [0.0] * 4), 1)


def raising(error):
    """Raise."""
    raise error


def test_a_step_that_cannot_be_written_down_lets_all_in_it_come_again(tmp_path, monkeypatch):
    """Those who waited at the barrier are told so, and nothing was made."""

    async def scenario(registry):
        model = await new_model(registry, consistency=Sync(2))
        first, second = await opened(model, "a", "b")
        waits = asyncio.ensure_future(model.push(first))
        while not await model.read(lambda engine: list(engine.policy.waiting)):
            pass
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", lambda *arguments, **options: raising(FULL))
            with pytest.raises(DiskFull):
                await model.push(second)
            with pytest.raises(Unavailable):
                await waits
        results = await asyncio.gather(model.push(first), model.push(second))
        return [result.version for result in results], (await look(registry))[2]

    assert run(tmp_path, scenario, durability="everysec") == ([1, 1], [1.0] * 4)


def test_after_a_failed_sync_nothing_is_acknowledged_any_more_and_pulls_go_on(
    tmp_path, monkeypatch
):
    """The model says so, and a stop leaves what is on the disk."""

    def fail(journal):
        journal.failure = FAILED
        raise FAILED

    async def scenario(registry):
        model = await new_model(registry)
        first, second = await opened(model, "w0", "w1")
        await model.push(first)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "sync", fail)
            with pytest.raises(ModelReadOnly):
                await model.push(second)
        with pytest.raises(ModelReadOnly):
            await model.push(second)
        told = (await model.describe())["durability"]["read_only"]
        return told, (await look(registry))[1:]

    told, seen = run(tmp_path, scenario, durability="always")

    assert told == FAILED.message
    assert seen == (1, [1.0] * 4)


def test_other_bytes_under_a_number_that_was_used_are_refused(tmp_path):
    """Whether the push is settled, or waits."""

    async def scenario(registry):
        model, _ = await registry.create(definition(), None, exist_ok=False)
        (first,) = await opened(model, "w0")
        await model.push(first)
        other = Push("w0", first.epoch, 0, first.incarnation, tick(-2.0))
        with pytest.raises(PayloadMismatch):
            await model.push(other)
        with pytest.raises(PayloadMismatch):
            await model.pushes.repeat(first.key, "0" * 16)
        again = await model.pushes.repeat(first.key, first.fingerprint)
        await push(model, "w1")
        return again.duplicate, (await look(registry))[1]

    assert run(tmp_path, scenario) == (True, 2)


def test_a_push_whose_record_is_refused_does_not_disturb_those_that_wait_for_the_sync(
    tmp_path, monkeypatch
):
    """The first is in a group that is not synced yet; the second does not fit on the disk."""
    go, is_syncing, real_sync, real_append = (
        threading.Event(), threading.Event(), Journal.sync, Journal.append,
    )  # fmt: skip

    def slow(journal):
        is_syncing.set()
        assert go.wait(60)
        real_sync(journal)

    def full_for_the_last(journal, header, *arguments, **options):
        if header["results"][0][0] == "last":
            raise FULL
        return real_append(journal, header, *arguments, **options)

    async def scenario(registry):
        model = await new_model(registry)
        pushes = await opened(model, "first", "second", "third", "last")
        monkeypatch.setattr(Journal, "sync", slow)
        monkeypatch.setattr(Journal, "append", full_for_the_last)
        made = [asyncio.ensure_future(model.push(push)) for push in pushes]
        await asyncio.to_thread(is_syncing.wait, 60)
        go.set()
        results = await asyncio.gather(*made, return_exceptions=True)
        monkeypatch.undo()
        return results

    *kept, refused = run(tmp_path, scenario, durability="always")

    assert [(result.version, result.duplicate) for result in kept] == [
        (1, False), (2, False), (3, False),
    ]  # fmt: skip
    assert isinstance(refused, DiskFull)


def test_a_change_that_is_written_down_and_cannot_be_made_stops_the_model(tmp_path, monkeypatch):
    """Memory ran out: the journal has it and the model has not, so nothing may follow; a restart
    makes it."""

    async def scenario(registry):
        model = await new_model(registry)
        first, second = await opened(model, "w0", "w1")
        monkeypatch.setattr(model.engine, "commit", lambda staged: raising(MemoryError()))
        with pytest.raises(MemoryError):
            await model.push(first)
        with pytest.raises(ModelReadOnly, match="do not agree"):
            await model.push(second)

    run(tmp_path, scenario, durability="everysec")

    assert run(tmp_path, look, durability="everysec")[1:] == (1, [1.0] * 4)


def test_whatever_a_sync_fails_of_those_who_wait_are_told_and_nothing_follows(
    tmp_path, monkeypatch
):
    """Not only of the disk: the log may be broken too, or memory run out. The lane goes on."""

    async def scenario(registry):
        model = await new_model(registry)
        first, second = await opened(model, "w0", "w1")
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "sync", lambda journal: raising(MemoryError()))
            with pytest.raises(ModelReadOnly, match="MemoryError"):
                await asyncio.wait_for(model.push(first), 60)
        with pytest.raises(ModelReadOnly, match="do not agree"):
            await asyncio.wait_for(model.push(second), 60)
        return (await look(registry))[1:]

    assert run(tmp_path, scenario, durability="always") == (0, [0.0] * 4)


def test_a_push_that_was_refused_with_one_before_it_is_not_decided_on_anew(tmp_path, monkeypatch):
    """Its memory is others' by then. Both come again and are steps of the new mode."""

    async def scenario(registry):
        model = await new_model(registry, consistency=Sync(3))
        pushes = await opened(model, "w0", "w1")
        waiting = [asyncio.ensure_future(model.push(push)) for push in pushes]
        while len(model.pushes.waiting_workers) < 2:
            await asyncio.sleep(0.001)
        with monkeypatch.context() as patch:
            errors, real = [FULL], model.recorder.append

            def append(change):
                if errors and isinstance(change, Staged):
                    raise errors.pop()
                real(change)

            patch.setattr(model.recorder, "append", append)
            await model.rules.set_consistency(Async())
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        between = (await look(registry))[1]
        again = [(await model.push(push)).version for push in pushes]
        return [type(error) for error in refused], between, again

    refused, between, again = run(tmp_path, scenario, durability="everysec")

    assert refused == [Unavailable, Unavailable]
    assert between == 0
    assert again == [1, 2]
