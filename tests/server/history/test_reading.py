"""Ranges of a history: what is in them, and that thinning out loses no spike."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepwell_server.history import reading
from stepwell_server.history.database import Database
from stepwell_server.history.events import Dropped, Left
from stepwell_server.history.reading import Range, read

from tests.server.history.entries import entry, joined, step


@pytest.fixture(scope="module")
def drawn():
    """Return losses with two spikes."""
    losses = np.random.default_rng(5).normal(size=1000)
    losses[123], losses[877] = 50.0, -50.0
    return losses


@pytest.fixture(scope="module")
def path(tmp_path_factory, drawn):
    """Return a file of 1,000 steps, version and time equal, between a join and a leave."""
    path = tmp_path_factory.mktemp("history") / "history.sqlite"
    database = Database(path)
    database.put(entry(1, joined(), time=0.0))
    for version, loss in enumerate(drawn, start=1):
        database.put(entry(version + 1, step(version, loss=float(loss)), time=float(version)))
    database.put(entry(2000, Dropped(1000, "w1", "dropped_late", 3), time=1001.0))
    database.put(entry(2001, Left(1000, "w0", 1, "closed"), time=1002.0))
    database.close()
    return path


def test_a_short_series_comes_whole(path, drawn):
    """In the order of the steps."""
    found = read(path, Range(points=1000))

    loss = found["series"]["metrics.loss"]
    assert list(loss["value"]) == list(drawn)
    assert list(loss["version"]) == list(range(1, 1001)) == [int(t) for t in loss["time"]]


def test_a_long_series_keeps_its_extremes_where_they_were(path, drawn):
    """A mean over ten would have hidden both spikes."""
    found = read(path, Range(points=100))

    loss = found["series"]["metrics.loss"]
    assert len(loss["value"]) <= 100 + 1  # the newest
    pairs = dict(zip(loss["version"], loss["value"], strict=True))
    assert (pairs[124], pairs[878]) == (50.0, -50.0)
    assert all(drawn[version - 1] == value for version, value in pairs.items())
    assert list(loss["version"]) == sorted(pairs)


def test_every_tenth_of_the_series_has_its_smallest_and_largest(path, drawn):
    """The definition of min-max decimation, worked out by NumPy."""
    found = read(path, Range(points=20))

    parts = drawn.reshape(10, 100)
    expected = {float(value) for part in parts for value in (part.min(), part.max())}
    assert set(found["series"]["metrics.loss"]["value"]) == expected | {drawn[-1]}


def test_the_newest_value_stays_and_means_are_those_of_the_parts(path, drawn):
    """What is it now, and what is it on the whole: neither is an extreme of a part."""
    found = read(path, Range(points=20))

    loss = found["series"]["metrics.loss"]
    means = dict(zip(loss["version"], loss["mean"], strict=True))
    expected = drawn.reshape(10, 100).mean(axis=1)
    assert (loss["version"][-1], loss["value"][-1]) == (1000, drawn[-1])
    assert [means[version] for version in means] == pytest.approx(
        [expected[(version - 1) // 100] for version in means]
    )
    assert (loss["count"], found["last"]) == (1000, 2001)


def test_a_mean_that_is_no_number_is_none(tmp_path):
    """JSON has no word for infinity, and a browser would read nothing of the whole answer."""
    database = Database(tmp_path / "history.sqlite")
    for version in range(1, 101):
        database.put(entry(version, step(version, loss=1.7e308), time=float(version)))
    database.close()

    found = read(tmp_path / "history.sqlite", Range(points=10))

    assert set(found["series"]["metrics.loss"]["mean"]) == {None}


def thinned_in_python(losses: Sequence[float], points: int) -> list[tuple[int, float, float]]:
    """Return version, value and mean of what stays of losses whose versions count from 1."""
    steps = list(enumerate(losses, start=1))
    if len(steps) <= points:
        return [(version, loss, loss) for version, loss in steps]
    size, larger = divmod(len(steps), points // 2)
    kept = []
    while steps:
        bucket = steps[: size + (larger > 0)]
        steps, larger = steps[len(bucket) :], larger - 1
        mean = sum(loss for _, loss in bucket) / len(bucket)
        low = min(bucket, key=lambda step: step[1])
        high = max(bucket, key=lambda step: step[1])
        kept += [(*step, mean) for step in sorted({low, high})]
    newest = (len(losses), losses[-1])
    return kept if kept[-1][:2] == newest else [*kept, (*newest, mean)]


@given(
    losses=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=60),
    before=st.integers(0, 3),
    gap=st.integers(1, 3),
    points=st.integers(2, 21),
)
def test_what_stays_is_what_a_few_lines_of_python_keep(losses, before, gap, points):
    """Of any length, with equal values (the first one stays), gaps and steps outside the range."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder) / "history.sqlite")
        outside = [-9.0] * before
        for place, loss in enumerate([*outside, *losses, *outside], start=1):
            event = step(place, loss=loss)
            database.put(entry(gap * place, event, time=float(place)))
        database.close()

        wanted = Range(before + 1, before + len(losses), points=points)
        loss = read(database.path, wanted)["series"]["metrics.loss"]

    expected = thinned_in_python(losses, points)
    versions, values, means = zip(*expected, strict=True)
    assert [version - before for version in loss["version"]] == list(versions)
    assert list(loss["time"]) == [float(version) for version in loss["version"]]
    assert list(loss["value"]) == list(values)
    assert loss["mean"] == pytest.approx(means)


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        (Range(from_version=990), 990, 1000),
        (Range(to_version=5), 1, 5),
        (Range(from_version=10, to_version=12), 10, 12),
        (Range(since=995.0), 995, 1000),
    ],
)
def test_a_range_has_what_is_in_it(path, wanted, first, last):
    """Both ends included."""
    versions = read(path, wanted)["series"]["learning_rate"]["version"]

    assert (versions[0], versions[-1], len(versions)) == (first, last, last - first + 1)


def test_events_come_without_samples_unless_asked_for(path):
    """What people did is not drowned in steps."""
    by_default = read(path, Range())
    drops = read(path, Range(kinds=("drop",)))

    assert list(by_default["events"]["kind"]) == ["join", "leave"]
    assert by_default["events"]["fields"][1] == {"worker": "w0", "epoch": 1, "reason": "closed"}
    assert drops["events"]["fields"][0]["outcome"] == "dropped_late"


def test_of_many_events_the_newest_come_and_the_others_are_counted(path):
    """Oldest first all the same."""
    found = read(path, Range(kinds=("step",), points=10))

    assert list(found["events"]["version"]) == list(range(991, 1001))
    assert found["left_out"] == 990


def test_events_come_alone_if_the_series_are_not_wanted(path, monkeypatch):
    """Who asks for them does not wait for what is left out."""
    whole = read(path, Range())
    monkeypatch.setattr(reading, "_series", None)

    assert read(path, Range(series=False)) == {**whole, "series": {}}


def test_an_empty_range_is_empty(path):
    """No series, no events, no error."""
    found = read(path, Range(from_version=5000, kinds=()))

    assert found["series"] == {}
    assert list(found["events"]["number"]) == []
