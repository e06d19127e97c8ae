"""A range of a history's file, thinned out so that a picture of it is the same.

A series of more than `points` values is cut into `points / 2` buckets of as many values each. Of a
bucket the smallest and the largest are kept, where they were (min-max decimation): no spike is
lost, which a mean would hide, and nothing is made up. The bucket's mean comes beside them, for who
smooths a curve, and the newest value of all stays, for who asks what it is now. Of equal values
the first is kept.

SQLite does it, a bucket at a time, without the GIL, so that looking at a long history does not stop
the workers: seven series of 200,000 steps take 1.5 s, and an event loop waits 8 ms at most. With
one statement that cuts all buckets by a window they took 5 s; with rows that come to NumPy they
take 3 s, and a slice of 4,096 of them holds the GIL for up to 60 ms.

What is no series, the events, is not thinned out: the newest `points` of them come, and how many
were left out is said.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell_server.history.events import KINDS, SAMPLE_KINDS, finite

DOWNSAMPLING = "min-max"

MOST_POINTS = 4000
DEFAULT_POINTS = 1000

MOST_VERSION = (1 << 63) - 1

OTHER_KINDS = tuple(kind for kind in KINDS if kind not in SAMPLE_KINDS)


@dataclass(frozen=True)
class Range:
    """What is asked of a history.

    Attributes:
        from_version: The first version.
        to_version: The last one.
        since: Unix seconds; nothing before.
        kinds: Of events that come one by one.
        series: Whether the series are wanted, too.
        points: Values of a series at most, beside the newest; events at most.
    """

    from_version: int = 0
    to_version: int = MOST_VERSION
    since: float = 0.0
    kinds: Sequence[str] = OTHER_KINDS
    series: bool = True
    points: int = DEFAULT_POINTS


_WHERE = "version BETWEEN :first AND :last AND time >= :since"

_ALL = f"""
    SELECT version, time, value, value FROM series WHERE name = :name AND {_WHERE} ORDER BY number
"""

# The bucket of the `:size` values behind the number `:after`. With one min() or max(), SQLite takes
# the bare columns from the first row that has it.
_BUCKET = f"""
    WITH bucket AS (
        SELECT max(number) AS last, avg(value) AS mean FROM (
            SELECT number, value FROM series WHERE name = :name AND number > :after AND {_WHERE}
            ORDER BY number LIMIT :size
        )
    )
    SELECT number, version, time, min(value), mean, last FROM bucket, series
    WHERE name = :name AND number > :after AND number <= last AND {_WHERE}
    UNION
    SELECT number, version, time, max(value), mean, last FROM bucket, series
    WHERE name = :name AND number > :after AND number <= last AND {_WHERE}
    ORDER BY number
"""

_NEWEST = f"""
    SELECT version, time, value FROM series WHERE name = :name AND {_WHERE}
    ORDER BY number DESC LIMIT 1
"""


def read(path: Path, wanted: Range) -> dict[str, Any]:
    """Return the series and the events of a range, in columns; blocks for as long as it takes.

    Raises:
        sqlite3.Error: The file cannot be read.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("BEGIN")  # so that all of it is of one moment
        (last,) = connection.execute("SELECT coalesce(max(number), 0) FROM events").fetchone()
        return {
            "downsampling": DOWNSAMPLING,
            "last": last,
            "series": _series(connection, wanted) if wanted.series else {},
            **_events(connection, wanted),
        }


def nothing() -> dict[str, Any]:
    """Return what `read` does of a history that has no file."""
    return {
        "downsampling": DOWNSAMPLING,
        "last": 0,
        "series": {},
        "events": _columns([]),
        "left_out": 0,
    }


def _series(connection: sqlite3.Connection, wanted: Range) -> dict[str, Any]:
    values: dict[str, Any] = {
        "first": wanted.from_version,
        "last": wanted.to_version,
        "since": wanted.since,
    }
    counts = connection.execute(
        f"SELECT name, count(*) FROM series WHERE {_WHERE} GROUP BY name", values
    ).fetchall()
    series = {}
    for name, count in counts:
        rows = _thinned(connection, {**values, "name": name}, count, wanted.points)
        versions, times, numbers, means = zip(*rows, strict=True)
        series[name] = {
            "version": versions,
            "time": times,
            "value": numbers,
            "mean": finite(means),  # of numbers near the largest there is, it is none
            "count": count,
        }
    return series


def _thinned(
    connection: sqlite3.Connection, values: Mapping[str, Any], count: int, points: int
) -> Sequence[tuple[Any, ...]]:
    """Return version, time, value and mean of so many points at most, and of the newest."""
    if count <= points:
        return connection.execute(_ALL, values).fetchall()
    rows = list(_extremes(connection, values, count, points // 2))
    newest = connection.execute(_NEWEST, values).fetchone()
    if rows[-1][:3] == newest:
        return rows
    return [*rows, (*newest, rows[-1][3])]


def _extremes(
    connection: sqlite3.Connection, values: Mapping[str, Any], count: int, buckets: int
) -> Iterator[tuple[Any, ...]]:
    """Yield the smallest and the largest of each bucket; the first ones have one value more."""
    size, larger = divmod(count, buckets)
    last = 0  # before all numbers
    for place in range(buckets):
        cut = {**values, "after": last, "size": size + (place < larger)}
        rows = connection.execute(_BUCKET, cut).fetchall()
        last = rows[-1][-1]
        yield from (row[1:-1] for row in rows)


def _events(connection: sqlite3.Connection, wanted: Range) -> dict[str, Any]:
    marks = ", ".join("?" for _ in wanted.kinds)
    where = f"kind IN ({marks}) AND version BETWEEN ? AND ? AND time >= ?"
    values = (*wanted.kinds, wanted.from_version, wanted.to_version, wanted.since)
    (count,) = connection.execute(f"SELECT count(*) FROM events WHERE {where}", values).fetchone()
    rows = connection.execute(
        f"SELECT number, time, kind, version, fields FROM events WHERE {where} "
        "ORDER BY number DESC LIMIT ?",
        (*values, wanted.points),
    ).fetchall()
    return {"events": _columns(rows[::-1]), "left_out": max(0, count - len(rows))}


def _columns(rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    numbers, times, kinds, versions, fields = zip(*rows, strict=True) if rows else ((),) * 5
    return {
        "number": numbers,
        "time": times,
        "kind": kinds,
        "version": versions,
        "fields": [json.loads(text) for text in fields],
    }
