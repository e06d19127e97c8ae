"""What `gradient_buffer()` and `view()` promise, whether or not memory is shared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import stepwell

from tests.client.models import ONES, PARAMETERS, assert_same


def minus(steps):
    """Return the parameters after so many steps of SGD at learning rate 1 with ones."""
    return {name: array - np.float32(steps) for name, array in PARAMETERS.items()}


def fill(buffer, value):
    """Write a gradient whose elements are all `value`; returns it."""
    for array in buffer.values():
        array[...] = value
    return buffer


class BufferContract:
    """The scenarios; `ClientContract` inherits them, with its fixtures."""

    def test_a_gradient_buffer_has_the_parameters_shapes_and_dtypes(self, client, name):
        """Scalars, empty tensors and two dtypes, all of them writable."""
        parameters = {
            "a": np.ones(7, np.float32),
            "b": np.ones((2, 3), np.float64),
            "empty": np.zeros((0, 3), np.float32),
            "scalar": np.float64(1),
        }
        model = client.create_model(name, parameters, optimizer=stepwell.SGD(1.0))

        with model.worker("w0") as worker:
            buffer = worker.gradient_buffer()
            assert [*buffer] == [*parameters]
            for key, array in parameters.items():
                assert (buffer[key].shape, buffer[key].dtype) == (array.shape, array.dtype)
            worker.push(fill(buffer, 1))

        assert_same(model.pull(), {key: array - array for key, array in parameters.items()})

    def test_a_gradient_buffer_is_filled_and_pushed_again_and_again(self, model):
        """With what was written last, all of it, some of it, or elsewhere in it."""
        with model.worker("w0") as worker:
            for _ in range(3):
                worker.push(fill(worker.gradient_buffer(), 1))
            buffer = fill(worker.gradient_buffer(), 2)
            worker.push({"dense/bias": buffer["dense/bias"]})
            buffer = worker.gradient_buffer()
            buffer["dense/kernel"][...] = np.arange(12).reshape(3, 4)
            worker.push({"dense/bias": buffer["dense/kernel"][1, 1:]})

        expected = minus(3)
        expected["dense/bias"] = expected["dense/bias"] - 2 - np.float32([5, 6, 7])
        assert_same(model.pull(), expected)

    def test_two_tensors_of_a_gradient_buffer_may_change_places(self, client, name):
        """What is pushed under a name is what was given under it."""
        parameters = {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}
        model = client.create_model(name, parameters, optimizer=stepwell.SGD(1.0))

        with model.worker("w0") as worker:
            buffer = worker.gradient_buffer()
            buffer["a"][...], buffer["b"][...] = 1, 2
            worker.push({"a": buffer["b"], "b": buffer["a"]})

        assert_same(model.pull(), {"a": np.full(4, -2, "f4"), "b": np.full(4, -1, "f4")})

    def test_a_gradient_buffer_stays_readable_behind_its_worker(self, model):
        """Whoever kept one is not killed for it."""
        with model.worker("w0") as worker:
            buffer = fill(worker.gradient_buffer(), 3)

        assert (buffer["dense/kernel"] == 3).all()
        fill(buffer, 4)
        assert_same(model.pull(), PARAMETERS)

    def test_half_width_gradients_go_beside_a_gradient_buffer(self, model):
        """float16 arrays are pushed as ever."""
        with model.worker("w0") as worker:
            fill(worker.gradient_buffer(), 7)
            worker.push({key: array.astype(np.float16) for key, array in ONES.items()})

        assert_same(model.pull(), minus(1))

    def test_a_view_shows_one_version_whatever_others_push(self, model):
        """Read-only; the next view shows what came since; the worker's version goes along."""
        with model.worker("w0") as worker, model.worker("w1") as other:
            with worker.view() as parameters:
                for _ in range(4):
                    other.push(ONES)
                assert_same(parameters, PARAMETERS)
                assert parameters.version == worker.version == 0
                with pytest.raises(ValueError, match="read-only"):
                    parameters["dense/bias"][...] = 0
            assert len(parameters) == 0
            with worker.view() as parameters:
                assert_same(parameters, minus(4))
                assert worker.push(ONES).staleness == 0

    def test_views_may_lie_in_each_other_and_a_pull_in_them(self, model):
        """Each is what was new when it began, as long as the server has buffers to spare."""
        with model.worker("w0") as worker:

            def look(depth):
                with worker.view() as parameters:
                    worker.push(ONES)
                    assert_same(worker.pull(), minus(depth + 1))
                    if depth < 1:
                        look(depth + 1)
                    assert_same(parameters, minus(depth))

            look(0)
            with worker.view() as parameters:
                assert_same(parameters, minus(2))

    def test_an_error_inside_a_view_goes_through(self, model):
        """And ends it."""
        with model.worker("w0") as worker:
            with pytest.raises(KeyError), worker.view() as parameters:
                raise KeyError
            assert len(parameters) == 0
            assert worker.push(ONES).version == 1

    def test_no_view_is_torn_while_others_push(self, client, name):
        """All elements of a version are equal, while three workers push as fast as they can."""
        zeros = {"a": np.zeros(40_000, np.float32), "b": np.zeros(40_000, np.float32)}
        ones = {key: array + 1 for key, array in zeros.items()}
        model = client.create_model(name, zeros, optimizer=stepwell.SGD(1.0))

        def train(index):
            with model.worker(f"w{index}") as worker:
                for _ in range(15):
                    worker.push(ones)

        with ThreadPoolExecutor(3) as threads, model.worker("reader") as reader:
            trainings = [threads.submit(train, index) for index in range(3)]
            seen = set()
            while not all(training.done() for training in trainings):
                with reader.view() as parameters:
                    found = {float(x) for a in parameters.values() for x in np.unique(a)}
                pulled = reader.pull()
                found_in_copy = {float(x) for a in pulled.values() for x in np.unique(a)}
                assert len(found) == len(found_in_copy) == 1
                seen |= found
            for training in trainings:
                training.result()

        assert model.pull()["a"][0] == -45
        assert seen <= {-float(step) for step in range(46)}

    def test_pull_options_are_kept(self, model):
        """`out`, `into`, `cached` and `min_version` of a worker's pull."""
        with model.worker("w0") as worker:
            out = {key: np.full_like(array, 9) for key, array in PARAMETERS.items()}
            pulled = worker.pull(out=out)
            assert_same(out, PARAMETERS)
            assert pulled["scale"] is out["scale"]
            pieces = {}
            worker.pull(into=lambda key, index, array: pieces.update({(key, index): array.copy()}))
            assert [*pieces] == [(key, 0) for key in PARAMETERS]
            assert pieces["dense/bias", 0].tolist() == [0.5, 0.5, 0.5]
            first = worker.pull()
            assert worker.pull(cached=first) is first
            assert worker.pull(min_version=1, wait_s=0.01).version == 0
            with ThreadPoolExecutor(1) as threads, model.worker("w1") as other:
                waiting = threads.submit(worker.pull, min_version=1)
                other.push(ONES)
                assert waiting.result(60).version == 1
            assert_same(worker.pull(cached=first), minus(1))

    def test_an_error_of_a_callback_goes_through_and_lets_go_of_the_version(self, model):
        """However often, the next pull works, and the error is its own."""

        def fail(key, index, array):
            raise stepwell.errors.NotFound("of the callback's own")

        with model.worker("w0") as worker:
            for step in range(6):
                with pytest.raises(stepwell.errors.NotFound, match="own"):
                    worker.pull(into=fail)
                assert worker.push(ONES).version == step + 1

            assert_same(worker.pull(), minus(6))

    def test_a_view_that_has_ended_is_no_cache(self, model):
        """Its arrays are gone, so a pull brings them anew, also if nothing changed."""
        with model.worker("w0") as worker:
            with worker.view() as seen:
                assert_same(seen, PARAMETERS)

            assert_same(worker.pull(cached=seen), PARAMETERS)
            assert worker.push(ONES).version == 1
