"""The file of a history: written beside everything, and never a reason not to start."""

from __future__ import annotations

import sqlite3
import threading

import pytest
from stepwell_server.history import database as module
from stepwell_server.history.database import SCHEMA_VERSION, Database

from tests.server.history.entries import entry, joined, step


@pytest.fixture
def path(tmp_path):
    """Return where the file is to be."""
    return tmp_path / "history.sqlite"


def numbers(path, table="events"):
    """Return the numbers of all entries in a file."""
    with sqlite3.connect(path) as connection:
        return [n for (n,) in connection.execute(f"SELECT number FROM {table} ORDER BY number")]


def filled(path, *entries):
    """Write entries to a file and close it."""
    database = Database(path)
    for one in entries:
        database.put(one)
    database.close()
    return database


def held_up(database, monkeypatch):
    """Make the disk stand still; returns what lets it go on."""
    goes_on, insert = threading.Event(), database._insert

    def slow(entries):
        assert goes_on.wait(30)
        insert(entries)

    monkeypatch.setattr(database, "_insert", slow)
    return goes_on


def test_what_was_put_is_there_after_the_end(path):
    """And another life of it knows where the numbers stand."""
    filled(path, entry(1), entry(2, joined()), entry(7))

    again = Database(path)
    again.close()

    assert numbers(path) == [1, 2, 7]
    assert (again.last_number, again.lost) == (7, 0)


def test_a_flush_waits_for_what_was_put_before(path):
    """Readers see it then, beside the writer."""
    database = Database(path)
    database.put(entry(1, step(1, loss=0.5)))

    database.flush()

    assert numbers(path) == [1]
    assert "metrics.loss" in {
        name for (name,) in sqlite3.connect(path).execute("SELECT name FROM series")
    }
    database.close()


def test_a_flush_after_the_end_returns(path):
    """Somebody may still ask while the model is being deleted."""
    filled(path).flush()


def test_a_slow_disk_costs_the_oldest_samples_and_nothing_else(path, monkeypatch):
    """Whoever puts does not wait; what people did is kept; what is lost is counted."""
    monkeypatch.setattr(module, "MOST_SAMPLES_WAITING", 5)
    database = Database(path)
    goes_on = held_up(database, monkeypatch)
    database.put(entry(1))
    while database._samples:  # the writer has taken it, and stands
        database._hurry.set()

    for number in range(2, 12):
        database.put(entry(number))
        database.put(entry(100 + number, joined()))
    goes_on.set()
    database.close()

    kept = numbers(path)
    assert [n for n in kept if n < 100] == [1, 7, 8, 9, 10, 11]
    assert [n for n in kept if n > 100] == list(range(102, 112))
    assert database.lost == 5


def test_a_full_disk_costs_what_could_not_be_written(path, monkeypatch):
    """It is counted, one line is logged, and the next batch is tried again."""
    database = Database(path)
    insert = database._insert

    def full(entries):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(database, "_insert", full)
    database.put(entry(1))
    database.flush()
    monkeypatch.setattr(database, "_insert", insert)
    database.put(entry(2))
    database.close()

    assert numbers(path) == [2]
    assert database.lost == 1


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look at"])
def test_a_file_that_is_none_is_replaced_and_kept_aside(path, content):
    """An empty file is an empty database, which SQLite itself would say."""
    path.write_bytes(content)

    filled(path, entry(1))

    assert numbers(path) == [1]
    aside = path.with_name("history.aside-1.sqlite")
    assert aside.exists() is bool(content)
    assert not content or aside.read_bytes() == content


def test_a_damaged_file_is_moved_aside_when_that_shows(path):
    """The start reads little; a page that is torn shows when it is written to or read."""
    filled(path, *(entry(n, step(n, loss=1.0)) for n in range(1, 400)))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)  # all but the page with the schema
    path.write_bytes(content)

    database = Database(path)
    database.put(entry(500))
    database.flush()
    database.put(entry(501))
    database.close()

    assert path.with_name("history.aside-1.sqlite").exists()
    assert numbers(path)[-1] == 501


@pytest.mark.parametrize(
    "change",
    [
        f"PRAGMA user_version = {SCHEMA_VERSION + 1}",
        "PRAGMA application_id = 7",
        "ALTER TABLE events RENAME TO other",
    ],
)
def test_a_file_of_another_version_or_program_is_moved_aside_whole(path, change):
    """Nothing of it is lost: the Stepwell that wrote it reads it under its new name."""
    filled(path, entry(1))
    with sqlite3.connect(path) as connection:
        connection.execute(change)

    filled(path, entry(5))

    assert numbers(path) == [5]
    table = "other" if "RENAME" in change else "events"
    assert numbers(path.with_name("history.aside-1.sqlite"), table) == [1]


def test_several_are_moved_aside_one_beside_the_other(path):
    """The second does not overwrite the first."""
    for _ in range(2):
        path.write_bytes(b"x" * 5000)
        filled(path)

    assert sorted(p.name for p in path.parent.glob("history.aside-*")) == [
        "history.aside-1.sqlite",
        "history.aside-2.sqlite",
    ]


def test_the_oldest_steps_give_way_and_what_people_did_stays(path, monkeypatch):
    """A file of a year of training is as large as one of a month."""
    monkeypatch.setattr(module, "MOST_SAMPLES", 20)

    filled(path, entry(1, joined()), *(entry(n) for n in range(2, 30)))

    kept = numbers(path)
    assert kept[0] == 1
    assert kept[1:] == list(range(4, 30))
    assert min(numbers(path, "series")) == 4


def test_a_worker_that_opens_sessions_in_a_loop_does_not_fill_the_disk(path, monkeypatch):
    """Joins are no samples, and the oldest of them give way to themselves alone."""
    monkeypatch.setattr(module, "MOST_OTHERS", 20)
    filled(path, entry(1), *(entry(n, joined()) for n in range(2, 20)))

    filled(path, *(entry(n, joined()) for n in range(20, 30)))

    assert numbers(path) == [1, *range(4, 30)]
    assert numbers(path, "series")[0] == 1


def test_a_commit_that_fails_costs_its_entries_and_not_the_file(path, monkeypatch):
    """The next batch begins a transaction of its own."""
    database, failures = Database(path), []

    class FailsToCommit:
        def __init__(self, connection):
            self.executemany, self.close = connection.executemany, connection.close
            self.connection = connection

        def execute(self, statement, *values):
            if statement == "COMMIT" and not failures:
                failures.append(statement)
                raise sqlite3.OperationalError("disk I/O error")
            return self.connection.execute(statement, *values)

    monkeypatch.setattr(database, "_connection", FailsToCommit(database._connection))
    database.put(entry(1))
    database.flush()
    database.put(entry(2))
    database.close()

    assert (numbers(path), database.lost) == ([2], 1)
    assert not list(path.parent.glob("history.aside*"))


def test_a_worker_that_makes_up_names_gets_so_many_series(path, monkeypatch):
    """The event itself has them all."""
    monkeypatch.setattr(module, "MOST_METRICS", 3)
    said = {f"m{n}": 1.0 for n in range(10)}

    filled(path, entry(1, step(1, metrics={"w0": said})))

    names = sqlite3.connect(path).execute("SELECT name FROM series WHERE name LIKE 'metrics.%'")
    assert len(names.fetchall()) == 3


def test_a_folder_that_cannot_be_written_is_an_error_of_the_opening(tmp_path):
    """`History.open` makes it a line in the log."""
    with pytest.raises(sqlite3.Error):
        Database(tmp_path / "missing" / "history.sqlite")
