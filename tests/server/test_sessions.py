"""The watch over leases: who is ended, who is not, and what if the server itself fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from stepwell_core.consistency import Async, Bounded, Consistency, Sync
from stepwell_core.definition import Definition
from stepwell_core.errors import DiskFull, SessionExpired
from stepwell_core.membership import HUNG, SILENT
from stepwell_core.optimizers import SGD
from stepwell_core.push import Push
from stepwell_core.record import SessionClosed
from stepwell_server import sessions as module
from stepwell_server.history import Left
from stepwell_server.model import HostedModel

from tests.server.registries import LAYOUT, run, tick

DEADLINE_S = 30.0


def definition(mode: Consistency) -> Definition:
    """Return a model whose parameters count its steps."""
    return Definition("m", LAYOUT, SGD(1.0, name="sgd"), consistency=mode)


class Clock:
    """The event loop's time, which is put forward as a stopped process finds it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ahead_s = 0.0
        time = loop.time
        loop.time = lambda: time() + self.ahead_s  # type: ignore[method-assign]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


def is_open(model: HostedModel, worker: str = "w0") -> bool:
    """Return whether the worker's newest session is open."""
    return model.engine.ledger.sessions[worker].is_open


def left(model: HostedModel) -> list[tuple[str, str]]:
    """Return who left, and why."""
    return [(e.worker, e.reason) for e in model.left if isinstance(e, Left)]  # type: ignore[attr-defined]


def on(tmp_path, mode: Consistency, scenario: Callable[[HostedModel], Any], **options: Any) -> Any:
    """Run a scenario on a model; what its history is told is in `model.left`."""

    async def host(registry):
        model, _ = await registry.create(definition(mode), None, exist_ok=False)
        model.left = []
        add = model.history.add

        def noted(event):
            model.left.append(event)
            add(event)

        model.history.add = noted
        return await scenario(model)

    return run(tmp_path, host, **options)


async def opened(model: HostedModel, *workers: str) -> dict[str, Callable[[int], Push]]:
    """Open sessions; returns what makes the push of a number, by worker."""
    made = {}
    for worker in workers:
        session, _, incarnation, _ = await model.sessions.open(worker)

        def make(sequence: int, key=(worker, session.epoch), now=incarnation) -> Push:
            return Push(*key, sequence, now, tick())

        made[worker] = make
    return made


def test_a_silent_worker_is_ended_with_its_lease_and_told(tmp_path):
    """Its next push is refused, and the history knows why it left."""

    async def scenario(model):
        pushes = await opened(model, "w0")
        await until(lambda: not is_open(model))
        with pytest.raises(SessionExpired):
            await model.push(pushes["w0"](0))
        return left(model), model.sessions.describe()

    assert on(tmp_path, Async(lease_s=0.1), scenario) == ([("w0", SILENT)], {})


def test_a_worker_that_only_lives_is_ended_with_patience(tmp_path):
    """Heartbeats alone are no work."""

    async def scenario(model):
        pushes = await opened(model, "w0")
        push = pushes["w0"](0)
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(SessionExpired):
                while True:
                    model.sessions.heartbeat("w0", push.epoch, push.incarnation)
                    await asyncio.sleep(0.01)
        return left(model)

    mode = Async(lease_s=2.0, patience_s=2.0)
    assert on(tmp_path, mode, scenario) == [("w0", HUNG)]


@pytest.mark.parametrize("mode", [Sync(2, lease_s=0.5, patience_s=0.5), Bounded(1, lease_s=0.5)])
def test_the_others_go_on_when_the_lease_of_one_ends(tmp_path, mode):
    """A push that waited is a step then, and its own worker's lease held meanwhile."""

    async def scenario(model):
        pushes = await opened(model, "lives", "dies")
        if isinstance(mode, Bounded):
            await model.push(pushes["lives"](0))
        push = pushes["lives"](model.engine.counters.version)
        waits = asyncio.create_task(model.push(push))
        async with asyncio.timeout(DEADLINE_S):
            while not waits.done():
                model.sessions.seen("lives", push.epoch)
                await asyncio.sleep(0.01)
        return waits.result().outcome, is_open(model, "lives"), left(model)

    assert on(tmp_path, mode, scenario) == ("applied", True, [("dies", SILENT)])


def test_a_gradient_that_comes_slowly_holds_its_lease_when_the_mode_changes_too(tmp_path):
    """All leases begin anew then, but what is being received is still being received."""

    async def scenario(model):
        pushes = await opened(model, "w0", "other")
        with model.sessions.sending("w0", pushes["w0"](0).epoch) as is_there:
            await model.rules.set_consistency(Async(lease_s=0.1, max_staleness=9))
            await until(lambda: not is_open(model, "other"))
            still = is_open(model), model.sessions.describe()["w0"]["is_sending"]
            is_there()
        after = model.sessions.describe()["w0"]["is_sending"]
        await until(lambda: not is_open(model))
        return still, after

    assert on(tmp_path, Async(lease_s=0.1), scenario) == ((True, True), False)


class Body:
    """A gradient's way here, of which the test says how it goes."""

    def __init__(self) -> None:
        self.silent_since: float | None = None
        self.errors: list[Exception] = []

    def give_up(self, error: Exception) -> None:
        self.errors.append(error)


def test_a_gradient_that_stands_still_for_a_lease_holds_it_no_longer(tmp_path):
    """While its bytes come, or the server itself lets it wait, it does; then it is cut."""

    async def scenario(model):
        loop, body = asyncio.get_running_loop(), Body()
        pushes = await opened(model, "w0", "other")
        with model.sessions.sending("w0", pushes["w0"](0).epoch, body):
            await until(lambda: not is_open(model, "other"))
            end = loop.time() + 0.3
            while loop.time() < end:
                body.silent_since = loop.time()
                await asyncio.sleep(0.01)
            still = is_open(model), list(body.errors)
            await until(lambda: body.errors != [])
        return still, is_open(model), [error.code for error in body.errors], left(model)[1:]

    assert on(tmp_path, Async(lease_s=0.1), scenario) == (
        (True, []), False, ["session_expired"], [("w0", SILENT)]
    )  # fmt: skip


def test_a_lease_that_becomes_shorter_ends_nobody_who_was_not_told(tmp_path):
    """Its client beats three times in the lease that it knows."""

    async def scenario(model):
        pushes = await opened(model, "quiet", "told")
        await model.rules.set_consistency(Async(lease_s=0.1))
        told = pushes["told"](0)
        said = model.sessions.heartbeat("told", told.epoch, told.incarnation)
        await until(lambda: not is_open(model, "told"))
        return said, is_open(model, "quiet")

    assert on(tmp_path, Async(lease_s=60.0), scenario) == (0.1, True)


def test_the_watch_survives_what_nobody_thought_of(tmp_path, monkeypatch):
    """Without it the first worker that dies would hold all others up for ever."""

    async def scenario(model):
        await opened(model, "w0")
        failures, close = [], model.sessions._close

        def fails_once(*arguments):
            if not failures:
                failures.append(arguments)
                raise MemoryError
            close(*arguments)

        monkeypatch.setattr(model.sessions, "_close", fails_once)
        await until(lambda: not is_open(model))
        return len(failures), left(model)

    assert on(tmp_path, Async(lease_s=0.1), scenario) == (1, [("w0", SILENT)])


def test_a_session_is_watched_whatever_its_opening_fails_of(tmp_path, monkeypatch):
    """It is in the ledger and in the journal: nobody else would ever end it."""

    async def scenario(model):
        def fails():
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(model.pushes, "make_due", fails)
            with pytest.raises(MemoryError):
                await model.sessions.open("w0")
        await until(lambda: not is_open(model))
        return left(model)

    assert on(tmp_path, Async(lease_s=0.1), scenario) == [("w0", SILENT)]


def test_who_could_not_be_heard_while_the_server_was_stopped_is_not_ended(tmp_path):
    """SIGSTOP, a suspended laptop: the seconds do not count, and leases go on after them."""

    async def scenario(model):
        clock = Clock(asyncio.get_running_loop())
        await opened(model, "w0")
        turns = 0
        expired = model.sessions._membership.expired

        def counted(*arguments):
            nonlocal turns
            turns += 1
            return expired(*arguments)

        model.sessions._membership.expired = counted
        await until(lambda: turns > 0)
        clock.ahead_s = 3600.0
        seen = turns
        await until(lambda: turns > seen + 1)
        stopped = is_open(model)
        await until(lambda: not is_open(model))
        return stopped, left(model)

    assert on(tmp_path, Async(lease_s=2.0), scenario) == (True, [("w0", SILENT)])


@pytest.mark.parametrize("reason", [SILENT, HUNG])
def test_a_session_that_a_full_disk_keeps_open_is_ended_when_there_is_room(
    tmp_path, monkeypatch, reason
):
    """It is tried again, not all the time, and the watch goes on."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.1)

    async def scenario(model):
        refused, keep = [], model.recorder.keep

        def full(change):
            if isinstance(change, SessionClosed):
                refused.append(change)
                raise DiskFull("There is no room")
            keep(change)

        pushes = await opened(model, "w0", "w1")
        model.recorder.keep = full
        loop = asyncio.get_running_loop()
        end = loop.time() + 3.0
        while loop.time() < end:
            if reason == HUNG:
                for name in ("w0", "w1"):
                    model.sessions.seen(name, pushes[name](0).epoch)
            await asyncio.sleep(0.02)
        attempts, still = len(refused), is_open(model)
        model.recorder.keep = keep
        await until(lambda: not is_open(model) and not is_open(model, "w1"))
        return still, 2 <= attempts <= 60

    assert on(tmp_path, Async(lease_s=1.0, patience_s=1.0), scenario) == (True, True)


def test_a_worker_that_comes_back_in_the_moment_it_is_ended_keeps_its_new_session(tmp_path):
    """The lane looks again whether it is still the one that was silent."""

    async def scenario(model):
        await opened(model, "w0")
        old = model.engine.ledger.sessions["w0"].epoch
        await model.sessions.open("w0")
        await model.sessions._expire(module.Expiry("w0", old, SILENT))
        return is_open(model), left(model), list(model.sessions.describe())

    assert on(tmp_path, Async(), scenario) == (True, [], ["w0"])


def test_after_a_restart_all_leases_begin_anew(tmp_path):
    """Nobody could give a sign of life to a server that was not there."""

    async def before(model):
        await opened(model, "w0")

    async def after(registry):
        model = registry.get("m")
        there = model.sessions.describe()["w0"]
        open_then = is_open(model)
        await until(lambda: not is_open(model))
        return open_then, there["last_seen_s"] < 1.0

    on(tmp_path, Async(lease_s=1.0), before)

    assert run(tmp_path, after) == (True, True)


def test_a_model_that_ends_is_watched_no_more(tmp_path):
    """No task is left that could end a session of a model that is closed."""

    async def scenario(model):
        await opened(model, "w0")
        await model.sessions.end()
        return model.sessions._watching.done(), is_open(model)

    assert on(tmp_path, Async(lease_s=0.1), scenario) == (True, True)
