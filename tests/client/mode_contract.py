"""What the modes of consistency promise workers: both clients, over the wire and in memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import stepwell
from stepwell.errors import InvalidArgument

from tests.client.models import ONES, PARAMETERS, assert_same

MODES = [
    stepwell.Async(4, on_stale="reject"),
    stepwell.Sync("all", reduction="arrival"),
    stepwell.Quorum(3, 2, lease_s=5.0),
    stepwell.Buffered(7),
    stepwell.Bounded(2, patience_s=900.0),
]


def shifted(by):
    """Return the first parameters plus a number."""
    return {name: array + np.asarray(by, array.dtype) for name, array in PARAMETERS.items()}


class ModeContract:
    """The scenarios; `ClientContract` inherits them, with its fixtures."""

    def test_a_mode_is_read_and_changed_while_the_model_lives(self, model):
        """What is read is equal to what was given."""
        for mode in MODES:
            model.set_consistency(mode)

            assert model.consistency() == mode

    @pytest.mark.parametrize("mode", [None, "sync", {"mode": "sync", "workers": 2}, 3])
    def test_what_is_no_mode_is_refused_before_anything_is_sent(self, model, mode):
        """The error shows what one looks like."""
        with pytest.raises(InvalidArgument, match=r"stepwell\.Sync"):
            model.set_consistency(mode)

    def test_buffered_pushes_are_answered_at_once_and_make_a_step_together(self, client, name):
        """The K-th makes it; one worker alone can be all of them."""
        mode = stepwell.Buffered(3)
        optimizer = stepwell.SGD(1.0)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer, consistency=mode)

        with model.worker("w0") as worker:
            results = [worker.push(ONES) for _ in range(4)]

        assert [r.outcome for r in results] == ["buffered", "buffered", "applied", "buffered"]
        assert [r.version for r in results] == [0, 0, 1, 1]
        assert_same(model.pull(), shifted(-1))

    def test_a_late_push_of_a_quorum_is_dropped_and_told(self, client, name):
        """Its worker pulls, and goes on."""
        optimizer, mode = stepwell.SGD(1.0), stepwell.Quorum(workers=2, quorum=1)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer, consistency=mode)

        with model.worker("fast") as fast, model.worker("slow") as slow:
            slow.pull()
            fast.push(ONES)
            late = slow.push(ONES)
            slow.pull()
            in_time = slow.push(ONES)

        assert (late.outcome, in_time.outcome) == ("dropped_late", "applied")
        assert_same(model.pull(), shifted(-2))

    def test_a_worker_that_runs_ahead_waits_for_the_slowest(self, client, name):
        """Without sending its gradient again and again; then both go on."""
        optimizer, mode = stepwell.SGD(1.0), stepwell.Bounded(1)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer, consistency=mode)

        with (
            model.worker("fast") as fast,
            model.worker("slow") as slow,
            ThreadPoolExecutor(1) as threads,
        ):
            fast.push(ONES)
            ahead = threads.submit(fast.push, ONES)
            while not ahead.running():
                pass
            before = slow.pull().version
            slow.push(ONES)

            assert ahead.result().outcome == "applied"

        assert before == 1
        assert_same(model.pull(), shifted(-3))

    def test_a_heartbeat_keeps_a_worker_that_computes_for_long(self, client, name):
        """Its lease is renewed beside it."""
        mode = stepwell.Async(lease_s=0.5)
        optimizer = stepwell.SGD(1.0)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer, consistency=mode)

        with model.worker("w0") as worker:
            epoch = worker.epoch
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                model.consistency()  # the time of a long gradient
            worker.push(ONES)

            assert worker.epoch == epoch

    def test_a_worker_whose_session_ended_opens_another_and_goes_on(self, client, name):
        """As after a silence for longer than its lease; its gradient counts once."""
        optimizer = stepwell.SGD(1.0)
        mode = stepwell.Async(lease_s=0.3, patience_s=0.4)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer, consistency=mode)

        with model.worker("hangs") as worker:
            first = worker.push(ONES)
            epoch = worker.epoch
            until = time.monotonic() + 2.0  # its heartbeat lives on, it pushes nothing
            while time.monotonic() < until:
                model.consistency()
            second = worker.push(ONES)

            assert worker.epoch > epoch

        assert (first.outcome, second.outcome) == ("applied", "applied")
        assert_same(model.pull(), shifted(-2))
