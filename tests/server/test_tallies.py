"""Numbers that are counted beside the work."""

from __future__ import annotations

from stepwell_server import tallies
from stepwell_server.tallies import Histogram, ModelTally, RequestTally


def test_a_value_belongs_to_the_first_bucket_that_is_not_less():
    """As Prometheus means `le`: a bound is part of its bucket."""
    histogram = Histogram((1, 2, 4))

    for value in (0.5, 1, 1.5, 4, 5):
        histogram.note(value)

    assert histogram.counts == [2, 1, 1, 1]
    assert (histogram.count, histogram.sum) == (5, 12.0)


def test_a_copy_does_not_change_with_what_comes_later():
    """It is read by another thread."""
    histogram = Histogram((1,))
    histogram.note(1)
    copied = histogram.copy()

    histogram.note(2)

    assert (copied.counts, copied.sum) == ([1, 0], 1.0)


def test_histograms_add_up():
    """Those of one route, whatever the status."""
    total, other = Histogram((1,)), Histogram((1,))
    total.note(1)
    other.note(2)

    total.add(other)

    assert (total.counts, total.sum, other.count) == ([1, 1], 3.0, 1)


def test_requests_are_kept_apart_by_method_route_and_status():
    """And counted together otherwise."""
    tally = RequestTally()

    for status in (200, 200, 404):
        tally.note("GET", "/v1", status, 0.001)

    assert {key: seconds.count for key, seconds in tally.seconds.items()} == {
        ("GET", "/v1", 200): 2,
        ("GET", "/v1", 404): 1,
    }


def test_of_very_many_workers_the_newest_are_counted(monkeypatch):
    """Names are a stranger's to choose, and a model lives for months."""
    monkeypatch.setattr(tallies, "MOST_WORKERS", 2)
    tally = ModelTally()

    for worker in ("a", "b", "a", "c"):
        tally.received(worker, 10)

    assert {name: worker.received_bytes for name, worker in tally.workers.items()} == {
        "b": 10,
        "c": 10,
    }
    assert tally.received_bytes == 40
