"""The lane: one order, one thread, and nothing kept longer than needed."""

import asyncio
import gc
import random
import threading
import weakref

import pytest
from stepwell_core.errors import ShuttingDown
from stepwell_server.lane import Lane


def on_lane(scenario):
    """Run `scenario(lane)` on a new event loop, and close the lane."""

    async def run():
        lane = Lane("test", asyncio.get_running_loop())
        try:
            return await scenario(lane)
        finally:
            await lane.close()

    return asyncio.run(run())


def test_functions_run_one_after_the_other_in_the_order_in_which_they_came():
    """That order is the history of a model."""
    order, threads = [], set()

    async def scenario(lane):
        def note(number):
            order.append(number)
            threads.add(threading.get_ident())

        await asyncio.gather(*(lane.run(lambda n=n: note(n)) for n in range(100)))

    on_lane(scenario)

    assert order == list(range(100))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_an_exception_goes_to_its_caller_and_the_lane_goes_on():
    """One bad call does not end a model."""

    async def scenario(lane):
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 // 0)
        return await lane.run(lambda: "still here")

    assert on_lane(scenario) == "still here"


def test_what_was_begun_is_finished_when_its_caller_is_cancelled():
    """A change is whole, also if nobody waits for it any more."""
    begun, go, done = threading.Event(), threading.Event(), []

    async def scenario(lane):
        def slow():
            begun.set()
            go.wait(10)
            done.append(True)

        task = asyncio.create_task(lane.run(slow))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await lane.run(lambda: None)

    on_lane(scenario)

    assert done == [True]


def test_closing_finishes_what_was_given_and_takes_nothing_more():
    """Nothing is lost at the end, and nobody waits for ever."""
    done = []

    async def scenario(lane):
        futures = [lane.submit(lambda n=n: done.append(n)) for n in range(10)]
        await lane.close()
        with pytest.raises(ShuttingDown):
            lane.submit(lambda: None)
        await asyncio.gather(*futures)

    on_lane(scenario)

    assert done == list(range(10))


def test_neither_a_job_nor_its_result_is_kept_until_the_next_one_comes():
    """Both may be gigabytes: a gradient, the copy of all slots."""

    class Large:
        pass

    async def scenario(lane):
        given, result = Large(), Large()
        kept = [weakref.ref(given), weakref.ref(result)]

        def job(given=given, result=result):
            return result

        del given, result
        await lane.run(job)
        del job
        # The lane's thread has left the job when it has begun to wait for the next: ask it to.
        await asyncio.to_thread(lambda: None)
        gc.collect()
        return [reference() for reference in kept]

    assert on_lane(scenario) == [None, None]


# Short jobs


def test_a_short_job_runs_at_once_on_an_idle_lane():
    """On the event loop itself, before anything else does, so nobody waits for two threads."""
    threads = []

    async def scenario(lane):
        result = lane.run(lambda: threads.append(threading.get_ident()), is_short=True)
        with pytest.raises(StopIteration):
            result.send(None)  # it did not wait for anything

    on_lane(scenario)

    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("seed", range(20))
def test_short_and_long_jobs_run_in_the_order_in_which_they_came(seed):
    """One after the other, whichever thread each runs on; never two at a time."""
    rng = random.Random(seed)
    order, running, threads = [], [], set()

    def job(number):
        assert not running, "two jobs at once"
        running.append(number)
        for _ in range(rng.choice([0, 10, 1000])):
            pass
        threads.add(threading.get_ident())
        order.append(number)
        running.remove(number)

    async def scenario(lane):
        tasks = []
        for number in range(200):
            is_short = rng.random() < 0.7
            tasks.append(
                asyncio.ensure_future(lane.run(lambda n=number: job(n), is_short=is_short))
            )
            if rng.random() < 0.3:
                await asyncio.sleep(0)
            if rng.random() < 0.1:
                await tasks[-1]
        await asyncio.gather(*tasks)

    on_lane(scenario)

    assert order == list(range(200))
    assert len(threads) == 2


def test_a_short_job_goes_to_the_thread_while_a_result_is_on_its_way():
    """That job has run, but what it has to tell the event loop has not been heard there."""
    done, threads = threading.Event(), []

    async def scenario(lane):
        lane.submit(done.set)
        done.wait(10)
        for _ in range(2):
            await lane.run(lambda: threads.append(threading.get_ident()), is_short=True)

    on_lane(scenario)

    first, second = threads
    assert first != second == threading.get_ident()


def test_a_short_job_that_fails_raises_and_the_lane_goes_on():
    """As on the thread; and what it answered before is answered."""

    async def scenario(lane):
        future = asyncio.get_running_loop().create_future()

        def job():
            lane.answer(future, "answered")
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await lane.run(job, is_short=True)
        return future.result(), await lane.run(lambda: "still here", is_short=True)

    assert on_lane(scenario) == ("answered", "still here")


def test_a_closed_lane_takes_no_short_job_either():
    """Nobody changes a model that was saved for the last time."""

    async def scenario(lane):
        await lane.close()
        with pytest.raises(ShuttingDown):
            await lane.run(lambda: None, is_short=True)

    on_lane(scenario)


def test_a_group_that_cannot_be_ended_does_not_end_the_lane():
    """Without its thread all that comes later would wait for ever; the event loop is told."""
    told = []

    async def scenario(lane):
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        lane.end_group = lambda: 1 // 0
        await lane.run(lambda: "begins a group", is_grouped=True)
        return await lane.run(lambda: "still here")

    assert on_lane(scenario) == "still here"
    assert {type(context["exception"]) for context in told} == {ZeroDivisionError}
