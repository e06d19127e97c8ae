"""Signs of life beside a worker: they begin with it, come in time, and end with it."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import numpy as np
import pytest
import stepwell
from stepwell import heartbeat as module
from stepwell.errors import ClientClosed, ConnectionFailed
from stepwell.heartbeat import AsyncHeartbeat, Heartbeat
from stepwell.retry import Patience, Timeout
from stepwell.session import Session
from stepwell_core.layout import Layout

from tests.client.flow_driver import Script, opened

LAYOUT = Layout.of({"w": np.zeros(3, np.float32)})
DEADLINE_S = 30.0


def new_session(lease_s=None):
    """Return a session; open, if there is a lease."""
    session = Session("m", LAYOUT, "w0", {}, Patience(Timeout(), was_reached=True))
    if lease_s is not None:
        Script(opened(lease_s=lease_s)).run(session.open())
    return session


class Beats:
    """Notes the calls of flows, and counts them."""

    def __init__(self, error=None):
        self.calls, self._error = [], error
        self._changed = threading.Condition()

    def send(self, flow):
        call = next(flow)
        flow.close()
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
        if self._error is not None:
            raise self._error

    async def send_async(self, flow):
        self.send(flow)

    def wait_for(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.calls) >= count, DEADLINE_S)


def beating():
    """Return the threads that beat."""
    return [thread for thread in threading.enumerate() if thread.name == "stepwell-heartbeat"]


def joined(threads):
    """Wait until threads have ended; returns those that have not."""
    for thread in threads:
        thread.join(DEADLINE_S)
    return [thread for thread in threads if thread.is_alive()]


@pytest.fixture
def model(server):
    """Return a model on a real server whose leases are short."""
    with stepwell.Client(server.url) as client:
        mode = stepwell.Async(lease_s=1.0)
        zeros = {"w": np.zeros(3, np.float32)}
        model = client.create_model("beats", zeros, optimizer="sgd", consistency=mode)
        yield model
        client.delete_model("beats")


def test_a_beat_says_which_session_lives():
    """Of the newest epoch, in one try."""
    session, beats = new_session(lease_s=0.03), Beats()
    heart = Heartbeat(session, beats.send)

    heart.start()
    beats.wait_for(2)
    heart.stop()

    call = beats.calls[0]
    assert (call.method, call.path.rpartition("/workers/")[2]) == ("POST", "w0/heartbeat")
    assert call.json == {"epoch": session.epoch, "incarnation": session.incarnation}


@pytest.mark.parametrize(
    ("lease_s", "pause_s"), [(0.3, 0.1), (30.0, 10.0), (86_400.0, module.LONGEST_PAUSE_S)]
)
def test_beats_go_out_three_times_in_each_lease(lease_s, pause_s):
    """And at least once a minute, so that connections stay open."""
    session = new_session(lease_s)

    assert module._pause_s(lambda: session) == pytest.approx(pause_s)


def test_a_beat_is_told_how_long_the_lease_is_now():
    """An administrator may have changed it; an older server says nothing."""
    session = new_session(lease_s=30.0)

    Script({"lease_s": 1.5}).run(session.heartbeat())
    told = session.lease_s
    Script({}).run(session.heartbeat())

    assert (told, session.lease_s) == (1.5, 1.5)


def test_a_beat_that_fails_is_followed_by_the_next():
    """The push tells what is the matter; a thread that ended would let the worker expire."""
    session, beats = new_session(lease_s=0.03), Beats(ConnectionFailed("gone"))
    heart = Heartbeat(session, beats.send)

    heart.start()
    beats.wait_for(3)
    heart.stop()

    assert len(beats.calls) >= 3


def test_starting_twice_is_one_thread_and_stopping_ends_it():
    """`start` is called before each push and pull."""
    before = beating()
    session = new_session(lease_s=0.03)
    heart = Heartbeat(session, Beats().send)
    heart.start()
    heart.start()
    threads = [thread for thread in beating() if thread not in before]

    heart.stop()

    assert len(threads) == 1
    assert joined(threads) == []


def test_a_thread_ends_with_the_session_that_nobody_closed():
    """It does not keep the session alive."""
    before = beating()
    session, beats = new_session(lease_s=0.03), Beats()
    heart = Heartbeat(session, beats.send)
    heart.start()
    beats.wait_for(1)
    threads = [thread for thread in beating() if thread not in before]

    del session, heart
    gc.collect()

    assert joined(threads) == []


def test_a_task_beats_and_ends_when_it_is_stopped():
    """The asyncio client has no threads."""

    async def beat():
        session, beats = new_session(lease_s=0.03), Beats(ConnectionFailed("gone"))
        heart = AsyncHeartbeat(session, beats.send_async)
        heart.start()
        heart.start()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        async with asyncio.timeout(DEADLINE_S):
            while len(beats.calls) < 3:
                await asyncio.sleep(0.01)
        heart.stop()
        await asyncio.wait(tasks, timeout=DEADLINE_S)
        return len(tasks), [task for task in tasks if not task.done()]

    assert asyncio.run(beat()) == (1, [])


def test_a_task_whose_client_was_closed_ends_without_an_error_that_nobody_sees():
    """As a thread does; asyncio would report a task whose exception was never retrieved."""

    async def beat():
        session, beats = new_session(lease_s=0.03), Beats(ClientClosed("the client is closed"))
        heart = AsyncHeartbeat(session, beats.send_async)
        heart.start()
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait([task], timeout=DEADLINE_S)
        return task.exception(), len(beats.calls)

    assert asyncio.run(beat()) == (None, 1)


def test_a_task_ends_with_the_session_that_nobody_closed():
    """As a thread does."""

    async def beat():
        session, beats = new_session(lease_s=0.03), Beats()
        heart = AsyncHeartbeat(session, beats.send_async)
        heart.start()
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}
        del session, heart
        gc.collect()
        await asyncio.wait([task], timeout=DEADLINE_S)
        return task.done()

    assert asyncio.run(beat())


def test_a_worker_that_computes_for_longer_than_its_lease_is_still_there(model):
    """Two leases long it calls nothing; its session is the same one."""
    with model.worker("w0") as worker:
        worker.push({"w": np.ones(3, np.float32)})
        session = worker._session
        epoch, silence = session.epoch, threading.Event()

        silence.wait(2.0)
        worker.push({"w": np.ones(3, np.float32)})

        assert session.epoch == epoch


def test_nothing_beats_after_a_worker_was_closed(model):
    """Leaving the block ends the thread."""
    before = beating()
    with model.worker("w0") as worker:
        worker.pull()
        threads = [thread for thread in beating() if thread not in before]

    assert len(threads) == 1
    assert joined(threads) == []


def test_a_forked_process_does_not_beat_for_its_parent(model):
    """Threads end in a fork; and the session is its parent's alone."""
    with model.worker("w0") as worker:
        worker.pull()
        child = os.fork()
        if not child:
            os._exit(len(beating()))
        status = os.waitpid(child, 0)[1]

        assert os.waitstatus_to_exitcode(status) == 0
        assert beating()
