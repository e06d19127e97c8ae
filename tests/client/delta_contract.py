"""What `push_delta` and `kind="delta"` promise, for both clients, over the wire and in memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import stepwell
from stepwell.errors import InvalidInput, StaleIncarnation

from tests.client.models import ONES, PARAMETERS, assert_same


def trained(parameters, step=1.0):
    """Return copies that local steps have changed."""
    return {name: np.array(array + np.float32(step)) for name, array in parameters.items()}


class DeltaContract:
    """The scenarios; `ClientContract` inherits them, with its fixtures."""

    def test_a_delta_makes_the_parameters_the_workers_own(self, model):
        """With learning rate 1, round after round; as a push of kind "delta" and by itself."""
        with model.worker("w0") as worker:
            for number in range(3):
                local = trained(worker.pull(), 0.25)
                result = worker.push_delta(local, weight=3, metrics={"loss": 0.5})
                assert (result.outcome, result.version) == ("applied", number + 1)
                assert_same(model.pull(), local)
            after = worker.push_pull(ONES, kind="delta")
            worker.push(ONES, kind="delta")

        assert_same(after, trained(local))
        assert_same(model.pull(), trained(local, 2.0))

    def test_a_delta_may_follow_a_push_that_pulls(self, model):
        """That counts as a pull; only the last one does."""
        with model.worker("w0") as worker:
            worker.pull()
            local = trained(worker.push_pull(ONES), 0.5)
            worker.push_delta(local)

        assert_same(model.pull(), local)

    def test_without_a_pull_there_is_no_delta(self, model):
        """Before the first, in a new session, and after a look at later parameters."""
        with model.worker("w0") as worker:
            with pytest.raises(InvalidInput, match="without a pull"):
                worker.push_delta(PARAMETERS)
            worker.pull()
            worker.open()
            with pytest.raises(InvalidInput, match="without a pull"):
                worker.push_delta(trained(PARAMETERS))
            worker.pull()
            worker.push(ONES)
            with worker.view():
                pass
            with pytest.raises(InvalidInput, match="version 1 by a view"):
                worker.push_delta(trained(PARAMETERS))
            local = trained(worker.pull())
            assert worker.push_delta(local).version == 2

    def test_parameters_trained_in_place_are_refused_and_nothing_is_pushed(self, model):
        """Also in arrays of the worker's own, into which it pulled."""
        mine = {name: np.zeros_like(array) for name, array in PARAMETERS.items()}
        with model.worker("w0") as worker:
            for options in ({}, {"out": mine}):
                parameters = worker.pull(**options)
                parameters["dense/kernel"][...] += 1
                with pytest.raises(InvalidInput, match="very memory"):
                    worker.push_delta(parameters)

        assert_same(model.pull(), PARAMETERS)

    def test_a_delta_of_a_history_that_was_cut_is_told_so(self, model):
        """Then the worker goes on from the new one, at a pull."""
        with model.worker("w0") as worker, model.worker("w1", on_stale="repull") as other:
            local = trained(worker.pull())
            others = trained(other.pull())
            model.overwrite(ONES)

            with pytest.raises(StaleIncarnation):
                worker.push_delta(local)
            assert other.push_delta(others).outcome == "dropped_stale"
            with pytest.raises(InvalidInput, match="without a pull"):
                other.push_delta(others)
            other.push_delta(trained(other.pull()))

        assert_same(model.pull(), trained(ONES))

    def test_the_mean_of_deltas_is_federated_averaging(self, client, name):
        """Weighted by examples."""
        averaging = {"optimizer": stepwell.SGD(1.0), "consistency": stepwell.Sync(workers=2)}
        model = client.create_model(name, PARAMETERS, **averaging)
        together = threading.Barrier(2, timeout=30)

        def site(index):
            with model.worker(f"site-{index}") as worker:
                local = trained(worker.pull(), 4.0 * index)
                together.wait()
                worker.push_delta(local, weight=1 + 2 * index)
                together.wait()

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(site, range(2)))

        assert_same(model.pull(), trained(PARAMETERS, 3.0))
