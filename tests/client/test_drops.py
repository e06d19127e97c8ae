"""A worker whose pushes have no effect learns why, though each single drop is no error."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import stepwell
from stepwell import drops
from stepwell.drops import Drops
from stepwell.results import PushResult

from tests import servers


def outcomes(*names):
    """Note results of these outcomes, one after the other."""
    watch = Drops("digits", "w0")
    for version, name in enumerate(names):
        watch.note(PushResult(name, version, version), 0)


@pytest.mark.parametrize("outcome", ["dropped_stale", "dropped_late"])
def test_the_third_drop_in_a_row_is_told_once(caplog, outcome):
    """With the versions, and what to do."""
    outcomes("applied", *[outcome] * 9)

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"({outcome}): the gradient was computed at version 0" in record.getMessage()
    assert "which is at 3. Pull before each gradient" in record.getMessage()


def test_now_and_then_a_drop_is_in_the_nature_of_the_mode(caplog):
    """A straggler of a quorum, or a worker that was stopped for a while."""
    outcomes(*["dropped_late", "dropped_late", "applied"] * 5, "skipped_nonfinite")

    assert caplog.records == []


def test_a_worker_that_never_pulls_is_told(tmp_path, caplog):
    """Over a real server: the loop that forgets `pull` is the usual mistake."""
    with servers.hosted(tmp_path) as server, stepwell.Client(server.url) as client:
        model = client.create_model(
            "m",
            {"w": np.zeros(2, np.float32)},
            optimizer=stepwell.SGD(1.0),
            consistency=stepwell.Async(max_staleness=1, on_stale="reject"),
        )
        with model.worker("w0") as worker:
            worker.pull()
            results = [
                worker.push({"w": np.ones(2, np.float32)}).outcome
                for _ in range(drops.MOST_IN_A_ROW + 2)
            ]

    assert results == ["applied"] * 2 + ["dropped_stale"] * drops.MOST_IN_A_ROW
    assert "version 0 of model 'm', which is at 2. Pull" in caplog.text
