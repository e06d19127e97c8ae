"""The file of a history: SQLite, appended to by a thread of its own, read beside it.

`<data>/<model>/history.sqlite`, `user_version` 1:

    events   number, time, kind, version, fields (JSON): every entry that was kept
    series   name, number, version, time, value: the numbers of steps, in the order they are drawn

WAL with `synchronous=NORMAL`: readers and the writer do not stop each other, and whatever kills the
process or the machine takes the last seconds at most and damages nothing.

Whoever puts an entry waits for nothing: neither for the disk nor for this thread. If the disk is
slower than the entries come, the oldest samples are lost, and counted. Nothing here can fail a push
or a start: a file that is damaged, foreign or of a newer version is moved aside, with a line in the
log; a disk that is full costs what could not be written.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from stepwell_server.history.events import METRIC, SAMPLE_KINDS, Entry, finite

APPLICATION_ID = 0x53746570
SCHEMA_VERSION = 1

BATCH_S = 0.5
"""How long entries are gathered before they are written together."""

MOST_SAMPLES_WAITING = 10_000
MOST_OTHERS_WAITING = 100_000
"""Entries in memory while the disk is slow: some 10 MB, and what people do in a day."""

MOST_SAMPLES = 1_000_000
"""Steps and drops in the file, some 400 MB; the oldest tenth of more is removed."""

MOST_OTHERS = 1_000_000
"""And all the rest, some 200 MB: what people do in a life, but not a worker that opens sessions in
a loop."""

MOST_METRICS = 64
"""Names of metrics that have a series; a worker that made up a name a step would fill the disk."""

FLUSH_S = 30.0

SCHEMA = """
CREATE TABLE events (
    number INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, version INTEGER NOT NULL,
    fields TEXT NOT NULL
);
CREATE INDEX events_by_kind ON events (kind);
CREATE TABLE series (
    name TEXT NOT NULL, number INTEGER NOT NULL, version INTEGER NOT NULL, time REAL NOT NULL,
    value REAL NOT NULL, PRIMARY KEY (name, number)
) WITHOUT ROWID;
"""

_SAMPLES = ", ".join(f"'{kind}'" for kind in SAMPLE_KINDS)
_WHERE = {True: f"kind IN ({_SAMPLES})", False: f"kind NOT IN ({_SAMPLES})"}
"""Which events are samples, and which are not."""

log = structlog.get_logger("stepwell")


class NotOurs(Exception):
    """The file is whole, but another program's or a newer version's."""


class Database:
    """The file of one model's history, open for writing.

    Args:
        path: Of the file; made if there is none, moved aside if it is of no use.

    Attributes:
        path: As above.
        last_number: The largest number in it when it was opened; 0 if it was empty.
        lost: Entries that were put and are not in the file, since then.

    Raises:
        OSError, sqlite3.Error: The disk lets no file be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self._samples: deque[Entry] = deque()
        self._others: deque[Entry] = deque()
        self._counts: dict[bool, int] = {}  # of samples (True), and of the rest
        self._connection = self._open()
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._flushes: deque[threading.Event] = deque()
        self._is_closing = False
        self._is_failing = False
        self._is_damaged = False
        self._thread = threading.Thread(target=self._work, name="history", daemon=True)
        self._thread.start()

    # Any thread

    def put(self, entry: Entry) -> None:
        """Have an entry written soon; waits for nothing. One thread at a time."""
        is_sample = entry.event.is_sample
        waiting = self._samples if is_sample else self._others
        if len(waiting) >= (MOST_SAMPLES_WAITING if is_sample else MOST_OTHERS_WAITING):
            with contextlib.suppress(IndexError):  # the writer has just taken it
                waiting.popleft()
                self.lost += 1
        waiting.append(entry)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self) -> None:
        """Wait until what was put before is in the file, or lost."""
        done = threading.Event()
        self._flushes.append(done)
        self._hurry.set()
        self._wake.set()
        deadline = time.monotonic() + FLUSH_S
        while self._thread.is_alive() and time.monotonic() < deadline and not done.wait(BATCH_S):
            pass  # the thread may have ended just before it was asked

    def report_damage(self) -> None:
        """Have the file moved aside: a reader found it damaged."""
        self._is_damaged = True
        self.flush()

    def close(self) -> None:
        """Write what was put, and end; once."""
        self._is_closing = True
        self._hurry.set()
        self._wake.set()
        self._thread.join()

    # The writer's thread

    def _work(self) -> None:
        while not (self._is_closing and self._is_empty()):
            self._wake.wait()
            self._hurry.wait(BATCH_S)
            self._wake.clear()
            self._hurry.clear()
            flushes = [self._flushes.popleft() for _ in range(len(self._flushes))]
            if self._is_damaged:
                self._replace("a reader found it damaged")
            self._write(self._taken())
            for done in flushes:
                done.set()
        with contextlib.suppress(sqlite3.Error):  # what it has is in it all the same
            self._connection.close()

    def _is_empty(self) -> bool:
        return not (self._samples or self._others or self._flushes)

    def _taken(self) -> list[Entry]:
        """Take all that waits, in order; others may put more meanwhile."""
        taken = []
        for waiting in (self._samples, self._others):
            with contextlib.suppress(IndexError):
                while True:
                    taken.append(waiting.popleft())
        return sorted(taken, key=lambda entry: entry.number)

    def _write(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        try:
            self._insert(entries)
        except sqlite3.Error as error:
            self.lost += len(entries)
            if is_damage(error):
                self._replace(str(error))
            elif not self._is_failing:
                log.warning("history_not_written", path=str(self.path), reason=str(error))
            self._is_failing = True
        else:
            self._is_failing = False

    def _insert(self, entries: Sequence[Entry]) -> None:
        rows = [
            (e.number, e.time, e.event.kind, e.event.version, json.dumps(finite(e.event.fields())))
            for e in entries
        ]
        numbers = [
            (name, entry.number, entry.event.version, entry.time, value)
            for entry in entries
            for name, value in entry.event.series().items()
            if self._has_series(name)
        ]
        with _transaction(self._connection) as connection:
            connection.executemany("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)", rows)
            connection.executemany("INSERT OR REPLACE INTO series VALUES (?, ?, ?, ?, ?)", numbers)
        for entry in entries:
            self._counts[entry.event.is_sample] += 1
        for are_samples, most in ((True, MOST_SAMPLES), (False, MOST_OTHERS)):
            if self._counts[are_samples] > most:
                self._trim(are_samples, most // 10)

    def _has_series(self, name: str) -> bool:
        if not name.startswith(METRIC) or name in self._metrics:
            return True
        if len(self._metrics) >= MOST_METRICS:
            return False
        self._metrics.add(name)
        if len(self._metrics) == MOST_METRICS:
            log.warning("history_has_enough_metrics", path=str(self.path), most=MOST_METRICS)
        return True

    def _trim(self, are_samples: bool, removed: int) -> None:
        """Remove the oldest samples, or the oldest of what is none."""
        where = _WHERE[are_samples]
        with _transaction(self._connection) as connection:
            (first_kept,) = connection.execute(
                f"SELECT number FROM events WHERE {where} ORDER BY number LIMIT 1 OFFSET ?",
                (removed,),
            ).fetchone()
            connection.execute(f"DELETE FROM events WHERE {where} AND number < ?", (first_kept,))
            names = connection.execute("SELECT DISTINCT name FROM series").fetchall()
            for (name,) in names if are_samples else ():
                connection.execute(
                    "DELETE FROM series WHERE name = ? AND number < ?", (name, first_kept)
                )
        self._counts[are_samples] -= removed

    # Opening

    def _open(self) -> sqlite3.Connection:
        try:
            connection = _connect(self.path)
        except NotOurs as error:
            self._move_aside(str(error))
            connection = _connect(self.path)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._move_aside(str(error))
            connection = _connect(self.path)
        self._note(connection)
        return connection

    def _note(self, connection: sqlite3.Connection) -> None:
        (self.last_number,) = connection.execute(
            "SELECT coalesce(max(number), 0) FROM events"
        ).fetchone()
        self._counts = {}
        for are_samples, where in _WHERE.items():
            (self._counts[are_samples],) = connection.execute(
                f"SELECT count(*) FROM events WHERE {where}"
            ).fetchone()
        names = connection.execute("SELECT DISTINCT name FROM series").fetchall()
        self._metrics = {name for (name,) in names if name.startswith(METRIC)}

    def _replace(self, reason: str) -> None:
        """Go on in a new file; the present one is damaged."""
        self._is_damaged = False
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        try:
            self._move_aside(reason)
            self._connection = _connect(self.path)
            self._note(self._connection)
        except (OSError, sqlite3.Error) as error:  # each batch is lost, and counted, from now on
            log.error("history_lost", path=str(self.path), reason=str(error))

    def _move_aside(self, reason: str) -> None:
        """Give the file another name, for whoever wants to look at it."""
        number = 1
        while (aside := self.path.with_name(f"history.aside-{number}.sqlite")).exists():
            number += 1
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        log.error("history_moved_aside", path=str(self.path), to=aside.name, reason=reason)


def _connect(path: Path) -> sqlite3.Connection:
    """Return a connection for the writer, to a file with our tables.

    Raises:
        NotOurs: It has others, or is of a newer version.
        sqlite3.Error: It is damaged, or there is none and none can be made.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables:
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if owner != APPLICATION_ID:
            raise NotOurs("it is another program's")
        if version != SCHEMA_VERSION:
            raise NotOurs(f"its version is {version}; this server writes {SCHEMA_VERSION}")
        connection.execute("SELECT fields FROM events ORDER BY number DESC LIMIT 1").fetchall()
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if not tables:
        with _transaction(connection):
            for statement in filter(str.strip, SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Write all of a block or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:  # also of the commit: the next transaction could not begin in this one
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether a file is damaged or none of SQLite's, and not just the disk in trouble."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,  # tables or columns that are not ours
    )
