"""The facade: added from any thread, kept over restarts, ended with its model."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading

import pytest
from stepwell_server.history import History
from stepwell_server.history.history import LEAP
from stepwell_server.history.reading import Range

from tests.server.history.entries import Clock, joined, step

ALL = Range(kinds=("join", "step"))


@pytest.fixture
def path(tmp_path):
    """Return where the file is to be."""
    return tmp_path / "history.sqlite"


def read(history, wanted=ALL):
    """Return a range."""
    return asyncio.run(history.read(wanted))


def test_what_was_added_is_read_at_once_and_after_a_restart(path):
    """The times are those of the clock."""
    first = History.open(path)
    first._clock = Clock(123.0)
    first.add(joined())
    at_once = read(first)
    first.close()

    second = History.open(path)
    later = read(second)
    second.close()

    assert at_once["events"] == later["events"]
    assert list(later["events"]["time"]) == [123.0]


def test_numbers_are_never_given_twice(path):
    """Those that only listeners saw leave no trace in the file, so it goes on far behind them."""
    first = History.open(path)
    first.add(joined())
    for _ in range(100):
        first.add(step(1), is_kept=False)
    first.close()

    second = History.open(path)
    second.add(joined())
    numbers = read(second)["events"]["number"]
    second.close()

    assert list(numbers) == [1, 1 + LEAP]


def test_many_threads_may_add(path):
    """Each entry has its own number, and all are kept."""
    history = History.open(path)
    threads = [
        threading.Thread(target=lambda: [history.add(joined()) for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = read(history)
    history.close()

    assert list(found["events"]["number"]) == list(range(1, 801))


def test_a_model_runs_without_the_file(tmp_path):
    """A folder that cannot be written costs the history, and says so when it is read."""
    history = History.open(tmp_path / "missing" / "history.sqlite")

    history.add(joined())

    assert read(history)["series"] == {}
    history.close()


def test_a_file_that_is_found_damaged_while_it_is_read_is_replaced(path):
    """The reader gets nothing; what comes after is kept."""
    history = History.open(path)
    for version in range(300):
        history.add(step(version, loss=1.0))
    read(history)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x55" * (path.stat().st_size - 4096))

    found = read(history)
    history.add(joined())
    again = read(history)
    history.close()

    assert found["series"] == {}
    assert list(again["events"]["kind"]) == ["join"]
    assert path.with_name("history.aside-1.sqlite").exists()


def test_listeners_hear_from_other_threads_and_end_with_the_model():
    """In one piece what came together; who comes after the end gets none."""

    async def scenario():
        history = History()
        messages = history.listen()
        hello = await anext(messages)
        thread = threading.Thread(target=lambda: [history.add(joined()) for _ in range(3)])
        thread.start()
        piece = await asyncio.wait_for(anext(messages), 30)
        while piece.count(b"event: join") < 3:
            piece += await asyncio.wait_for(anext(messages), 30)
        thread.join()
        history.end()
        rest = [message async for message in messages]
        late = [message async for message in history.listen()]
        return hello, rest, late, history.listeners

    hello, rest, late, listeners = asyncio.run(scenario())

    assert hello == b"retry: 1000\nid: 0\n\n"
    assert rest == []
    assert len(late) <= 1
    assert listeners == 0
