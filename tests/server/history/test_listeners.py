"""Listeners: woken by what is added, told what they missed, and never in the way."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from stepwell_server.history import listeners as module
from stepwell_server.history.events import KINDS
from stepwell_server.history.listeners import Listener
from stepwell_server.history.ring import Ring

from tests.server.history.entries import entry, joined

DEADLINE_S = 30.0


def ring_of(*entries, first=1, size=8):
    """Return a ring with entries."""
    ring = Ring(first, size)
    for one in entries:
        ring.add(one)
    return ring


async def heard(listener, count):
    """Return the next pieces of a stream."""
    async with asyncio.timeout(DEADLINE_S), contextlib.aclosing(listener.messages()) as messages:
        return [await anext(messages) for _ in range(count)]


def test_a_listener_begins_with_now_or_behind_what_it_has():
    """It is told its place, so that it can come again before anything happened."""
    ring = ring_of(entry(1), entry(2), entry(3))

    (hello,) = asyncio.run(heard(Listener(ring, None, KINDS), 1))
    _, rest = asyncio.run(heard(Listener(ring, 1, KINDS), 2))

    assert hello == b"retry: 1000\nid: 3\n\n"
    assert rest == entry(2).message + entry(3).message


def test_a_listener_is_woken():
    """Nobody polls: what is added after it waits reaches it."""

    async def scenario():
        ring = ring_of(entry(1))
        listener = Listener(ring, None, KINDS)
        waiting = asyncio.create_task(heard(listener, 2))
        while not listener._is_waiting:
            await asyncio.sleep(0)
        ring.add(entry(2))
        listener.wake()
        return await waiting

    assert asyncio.run(scenario())[1] == entry(2).message


def test_a_listener_gets_the_kinds_that_it_wants():
    """And goes on behind the others."""
    ring = ring_of(entry(1), entry(2, joined()), entry(3), entry(4, joined()))

    _, rest = asyncio.run(heard(Listener(ring, 0, ["join"]), 2))

    assert rest == entry(2, joined()).message + entry(4, joined()).message


def test_who_comes_back_too_late_is_told_what_is_gone():
    """Then the rest comes."""
    ring = ring_of(*(entry(n) for n in range(1, 21)), size=8)

    hello, rest = asyncio.run(heard(Listener(ring, 4, KINDS), 2))

    assert b'event: missed\ndata: {"first": 5, "last": 12}\n\n' in hello
    assert rest.startswith(entry(13).message)


@pytest.mark.parametrize(("after", "missed"), [(0, None), (2, (3, 40)), (40, None), (99, None)])
def test_after_a_restart_only_what_was_is_missed(after, missed):
    """Numbers that were never given are nothing; and 0 asks for all that is remembered."""
    ring = Ring(first=100, size=8, last_before=40)
    ring.add(entry(100))

    hello, rest = asyncio.run(heard(Listener(ring, after, KINDS), 2))

    said = None if b"missed" not in hello else json.loads(hello.split(b"data: ")[1])
    assert said == (missed and {"first": missed[0], "last": missed[1]})
    assert rest == entry(100).message


def test_a_slow_listener_is_told_and_dropped():
    """While it did not take what was sent, the ring went round."""

    async def scenario():
        ring = ring_of(entry(1), size=4)
        messages = Listener(ring, 0, KINDS).messages()
        await anext(messages)
        first = await anext(messages)
        for number in range(2, 12):
            ring.add(entry(number))
        return first, [message async for message in messages]

    first, rest = asyncio.run(scenario())

    assert first == entry(1).message
    assert len(rest) == 1
    assert rest[0].startswith(b"event: dropped\n")
    assert json.loads(rest[0].split(b"data: ")[1]) == {"first": 2, "last": 7}


def test_a_silent_stream_has_heartbeats(monkeypatch):
    """With the place, so that a broken connection is taken up where it was."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)

    _, beat, again = asyncio.run(heard(Listener(ring_of(entry(1)), None, KINDS), 3))

    assert beat == again == b": still here\nid: 1\n\n"


@pytest.mark.parametrize("is_stuck", [False, True])
def test_the_end_comes_at_once_also_for_who_takes_nothing(is_stuck):
    """A stuck one's connection is ended; one that waits is woken, and its stream is over."""

    async def scenario():
        aborted = []
        ring = ring_of(entry(1))
        listener = Listener(ring, 0, KINDS, lambda: aborted.append(True))
        messages = listener.messages()
        await anext(messages)
        await anext(messages)  # what it got here it is still sending, if it is stuck
        if is_stuck:
            listener.end()
            rest = [message async for message in messages]
        else:
            waiting = asyncio.create_task(anext(messages, None))
            while not listener._is_waiting:
                await asyncio.sleep(0)
            listener.end()
            rest = [m for m in [await asyncio.wait_for(waiting, DEADLINE_S)] if m]
        return rest, aborted

    rest, aborted = asyncio.run(scenario())

    assert rest == []
    assert aborted == ([True] if is_stuck else [])
