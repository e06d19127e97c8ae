"""What `Client` and `AsyncClient` promise, against a real server. Both inherit these tests.

A subclass says by `kind` which of the two it is about; see `adapter.py`.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
import stepwell
from stepwell.errors import (
    Fenced,
    Forbidden,
    InvalidArgument,
    InvalidInput,
    ModelDiffers,
    ModelExists,
    ModelNotFound,
    NonFiniteGradient,
    NothingToFinalize,
    StaleIncarnation,
    Unauthenticated,
)

from tests.client.adapter import ADAPTERS, PATIENT
from tests.client.buffer_contract import BufferContract
from tests.client.delta_contract import DeltaContract
from tests.client.flaky_proxy import FlakyProxy
from tests.client.mode_contract import ModeContract
from tests.client.models import ONES, PARAMETERS, assert_same, gradients_of
from tests.servers import served, start

BFLOAT16 = ml_dtypes.bfloat16


class ClientContract(BufferContract, DeltaContract, ModeContract):
    """The scenarios."""

    kind: ClassVar[str]

    @pytest.fixture
    def clients(self):
        """Return what makes clients of this kind."""
        clients = ADAPTERS[self.kind]()
        yield clients
        clients.close()

    def losing(self, server):
        """Return something in between that can lose the server's answers."""
        return FlakyProxy(server.url)

    @pytest.fixture
    def client(self, clients, server):
        """Return a client of the shared server."""
        with clients.client(server.url, timeout=PATIENT) as client:
            yield client

    @pytest.fixture
    def name(self):
        """Return a model name that no other test has."""
        return f"m-{uuid.uuid4().hex}"

    @pytest.fixture
    def model(self, client, name):
        """Return a model with SGD at learning rate 1, so that steps can be counted by eye."""
        return client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(1.0))

    # Models

    def test_a_model_begins_with_the_values_it_was_given(self, client, name):
        """Scalars, empty tensors, odd sizes and two dtypes come back as they were."""
        parameters = {
            "a": np.arange(7, dtype=np.float32),
            "b": np.arange(6, dtype=np.float64).reshape(2, 3).T,
            "empty": np.zeros((0, 3), np.float32),
            "scalar": np.float64(0.1),
            "last": np.float32([[[5]]]),
        }

        model = client.create_model(name, parameters, optimizer="adam")

        assert_same(model.pull(), parameters)
        assert (model.name, model.layout.names) == (name, tuple(parameters))

    def test_a_model_exists_once(self, client, name, model):
        """A second creation is told so; `exist_ok` opens it, and its values stay."""
        other = {key: array + 1 for key, array in PARAMETERS.items()}

        with pytest.raises(ModelExists):
            client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(1.0))
        opened = client.create_model(name, other, optimizer=stepwell.SGD(1.0), exist_ok=True)

        assert_same(opened.pull(), PARAMETERS)

    def test_a_model_that_differs_is_told(self, client, name, model):
        """Another optimizer or other tensors are another model."""
        with pytest.raises(ModelDiffers):
            client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(0.5), exist_ok=True)
        with pytest.raises(ModelDiffers):
            client.create_model(name, ONES, optimizer="adam", exist_ok=True)

    def test_models_are_opened_listed_and_deleted_by_name(self, client, name, model):
        """After the deletion there is none of that name."""
        assert client.model(name).layout == model.layout
        assert name in client.models()

        client.delete_model(name)

        assert name not in client.models()
        for ask in (client.model, client.delete_model):
            with pytest.raises(ModelNotFound):
                ask(name)

    def test_the_server_says_what_it_is(self, client, model):
        """Protocol and limits of the server; version and optimizer of the model."""
        assert client.about()["protocol"] == 1
        assert model.describe()["version"] == 0
        assert model.optimizer() == stepwell.SGD(1.0, name="sgd")

    # Pulls

    def test_a_pull_may_be_of_some_tensors_or_of_a_slot(self, client, name):
        """They come in the model's order, whatever the order of the names."""
        optimizer = stepwell.SGD(1.0, momentum=0.5)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer)
        with model.worker("w0") as worker:
            worker.push(ONES)

        some = model.pull(["scale", "dense/bias"])
        momentum = model.pull("scale", slot="momentum")

        assert list(some) == ["dense/bias", "scale"]
        assert momentum["scale"] == -1
        with pytest.raises(InvalidInput, match="momentum"):
            model.pull(slot="velocity")

    def test_pulled_arrays_belong_to_the_caller(self, model):
        """Writing into them changes neither the model nor another pull."""
        first = model.pull()
        first["dense/kernel"][:] = -1

        assert_same(model.pull(), PARAMETERS)

    def test_a_pull_may_be_of_half_width(self, model):
        """Rounded once, to the nearest."""
        for dtype in ("float16", "bfloat16"):
            halves = {name: np.asarray(array).astype(dtype) for name, array in PARAMETERS.items()}

            assert_same(model.pull(dtype=dtype), halves)
            assert_same(model.pull("scale", dtype=dtype), {"scale": halves["scale"]})

    def test_a_pull_may_go_into_arrays_or_a_callback(self, model):
        """The same bytes as otherwise."""
        out = {name: np.zeros_like(array) for name, array in PARAMETERS.items()}
        pieces = []

        model.pull(out=out)
        model.pull(into=lambda *piece: pieces.append((*piece[:2], piece[2].tolist())))

        assert_same(out, PARAMETERS)
        assert pieces == [
            (name, 0, np.asarray(array).reshape(-1).tolist()) for name, array in PARAMETERS.items()
        ]

    def test_what_did_not_change_is_not_sent_again(self, model):
        """Until there is a step; for a worker as for the model, and after a push that pulls."""
        with model.worker("w0") as worker:
            first = worker.push_pull(ONES)
            assert worker.pull(cached=first) is first
            assert model.pull(cached=first) is first
            assert model.pull("scale", cached=first) is not first
            assert model.pull(dtype="float16", cached=first) is not first

            worker.push(ONES)
            second = worker.pull(cached=first)

        assert second is not first
        assert second.version == worker.version == 2

    def test_a_pull_waits_for_a_version(self, clients, client, server, model):
        """It comes when another worker has pushed, or when time is over."""
        first = model.pull()
        assert model.pull(cached=first, min_version=1, wait_s=0.05) is first

        with (
            model.worker("w0") as worker,
            clients.client(server.url, timeout=PATIENT) as other,
            ThreadPoolExecutor() as pool,
        ):
            watched = other.model(model.name)
            waiting = pool.submit(watched.pull, cached=first, min_version=1, wait_s=60)
            worker.push(ONES)
            found = waiting.result(60)

            assert found.version == 1
            model.overwrite(PARAMETERS)
            with pytest.raises(StaleIncarnation):
                worker.pull(min_version=9, wait_s=30)

    # Pushes

    def test_a_push_is_the_formula_to_the_bit(self, client, name):
        """Ten steps of Adam here and there have the same bytes."""
        model = client.create_model(name, PARAMETERS, optimizer=stepwell.Adam(0.01))
        local = Adam(PARAMETERS, 0.01)

        with model.worker("w0") as worker:
            for seed in range(10):
                gradients = gradients_of(PARAMETERS, seed)
                result = worker.push(gradients)
                local.step(gradients)

        assert_same(model.pull(), local.parameters)
        assert (result.outcome, result.version, result.duplicate) == ("applied", 10, False)

    def test_push_pull_is_push_and_pull(self, client, name):
        """In one round trip, and the version goes on from there."""
        model = client.create_model(name, PARAMETERS, optimizer=stepwell.Adam(0.01))
        local = Adam(PARAMETERS, 0.01)

        with model.worker("w0") as worker:
            for seed in range(3):
                gradients = gradients_of(PARAMETERS, seed)
                parameters = worker.push_pull(gradients)
                local.step(gradients)
                assert_same(parameters, local.parameters)
                assert worker.version == parameters.version == seed + 1
            assert worker.push(ONES).staleness == 0
            assert worker.push(ONES).staleness == 1

    def test_float64_gradients_of_a_float32_model_are_taken(self, model):
        """All of one dtype; the server rounds them, as Keras would."""
        gradients = {name: array.astype(np.float64) / 4 for name, array in ONES.items()}

        with model.worker("w0") as worker:
            worker.push(gradients)

        assert_same(model.pull(), {k: v - np.float32(0.25) for k, v in PARAMETERS.items()})

    def test_gradients_of_half_width_may_come_as_their_bits(self, model):
        """uint16, with what they are; beside arrays that say it themselves."""
        halves = {name: (array / 4).astype(BFLOAT16) for name, array in ONES.items()}
        bits = {name: np.asarray(array).view(np.uint16) for name, array in halves.items()}

        with model.worker("w0") as worker:
            worker.push(halves)
            worker.push(bits, dtype="bfloat16")
            worker.push_pull(bits, dtype="bfloat16")

        assert_same(model.pull(), {k: v - np.float32(0.75) for k, v in PARAMETERS.items()})

    def test_a_model_with_two_dtypes_takes_gradients_of_both(self, client, name):
        """Each parameter's own dtype, with odd sizes, or one for all."""
        parameters = {"a": np.zeros(7, "f4"), "b": np.zeros(5, "f8"), "c": np.zeros(3, "f4")}
        model = client.create_model(name, parameters, optimizer=stepwell.SGD(1.0))
        native = {
            key: -np.arange(array.size, dtype=array.dtype) for key, array in parameters.items()
        }

        with model.worker("w0") as worker:
            worker.push(native)
            worker.push({key: array.astype(np.float16) for key, array in native.items()})

        assert_same(model.pull(), {key: -2 * array for key, array in native.items()})

    def test_missing_gradients_leave_parameters_alone(self, model):
        """Absent and None mean the same."""
        with model.worker("w0") as worker:
            worker.push({"scale": np.float32(1), "dense/bias": None})

        assert_same(model.pull(), {**PARAMETERS, "scale": np.float32(1)})

    def test_gradients_may_be_views_of_any_kind(self, model):
        """Non-contiguous, big-endian, or behind `__array__`."""

        class Tensor:
            def __array__(self, dtype=None, copy=None):
                return np.float32([1, 1, 1])

        with model.worker("w0") as worker:
            worker.push(
                {
                    "dense/kernel": np.ones((4, 6), ">f4")[:, ::2].T,
                    "dense/bias": Tensor(),
                    "scale": np.ones(3, np.float32)[1],
                }
            )

        assert_same(model.pull(), {name: array - 1 for name, array in PARAMETERS.items()})

    def test_a_refused_gradient_changes_nothing_and_the_next_one_goes_through(self, model):
        """NaN is refused by the server; its sequence number stays free."""
        bad = {**ONES, "scale": np.float32(np.nan)}

        with model.worker("w0") as worker:
            with pytest.raises(NonFiniteGradient):
                worker.push(bad)
            result = worker.push(ONES)

        assert (result.version, result.duplicate) == (1, False)

    def test_hyperparameters_that_are_callables_come_with_each_push(self, client, name):
        """The learning rate is asked for once a push, and the step uses it."""
        rates = iter([1.0, 0.5, 0.25])
        optimizer = stepwell.SGD(lambda: next(rates))
        model = client.create_model(name, PARAMETERS, optimizer=optimizer)

        with model.worker("w0") as worker:
            scales = [float(worker.push_pull(ONES)["scale"]) for _ in range(3)]

        assert scales == [1.0, 0.5, 0.25]
        with client.model(name).worker("w1") as other:
            with pytest.raises(InvalidInput, match="learning_rate"):
                other.push(ONES)
            assert other.push(ONES, hyperparameters={"learning_rate": 0.25}).version == 4

    def test_a_callable_beta_of_adam_comes_with_each_push(self, client, name):
        """With the same value each time the bytes are those of the plain number."""
        optimizer = stepwell.Adam(0.01, beta_1=lambda: 0.9)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer)
        local = Adam(PARAMETERS, 0.01)

        with model.worker("w0") as worker:
            worker.push(ONES)
        local.step(ONES)

        assert_same(model.pull(), local.parameters)

    def test_names_excluded_from_weight_decay_are_left_out_of_it(self, client, name):
        """Patterns are resolved here, and the server gets names."""
        optimizer = stepwell.SGD(1.0, weight_decay=0.5).exclude_from_weight_decay(["bias$"])
        model = client.create_model(name, PARAMETERS, optimizer=optimizer)
        zeros = {key: np.zeros_like(array) for key, array in PARAMETERS.items()}

        with model.worker("w0") as worker:
            parameters = worker.push_pull(zeros)

        assert model.describe()["exclude_from_weight_decay"] == ["dense/bias"]
        assert parameters["dense/bias"].tolist() == [0.5, 0.5, 0.5]
        assert float(parameters["scale"]) == 1.0

    def test_a_dynamic_loss_scale_goes_to_the_worker(self, client, name):
        """A skipped step halves it, and the worker knows at once."""
        optimizer = stepwell.LossScaleOptimizer(stepwell.SGD(1.0), initial_scale=8.0)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer)

        with model.worker("w0") as worker:
            assert worker.loss_scale == 8.0
            skipped = worker.push({**ONES, "scale": np.float32(np.inf)})
            assert (skipped.outcome, worker.loss_scale) == ("skipped_nonfinite", 4.0)
            worker.push({key: array * 4 for key, array in ONES.items()})

        assert_same(model.pull(), {key: array - 1 for key, array in PARAMETERS.items()})

    # Several workers

    def test_two_workers_of_a_synchronous_model_make_steps_together(self, client, name):
        """Each step is the weighted mean of both gradients, in the order of the names."""
        model = client.create_model(
            name, PARAMETERS, optimizer=stepwell.SGD(1.0), consistency=stepwell.Sync(workers=2)
        )
        together = threading.Barrier(2, timeout=30)

        def train(index):
            with model.worker(f"w{index}") as worker:
                worker.pull()
                together.wait()  # a worker that left early would no longer be waited for
                results = [
                    worker.push_pull(gradients_of(PARAMETERS, 10 * step + index), weight=index + 1)
                    for step in range(5)
                ]
                together.wait()
            return results

        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(train, range(2))

        local = {key: np.asarray(array) for key, array in PARAMETERS.items()}
        for step in range(5):
            mine, theirs = (gradients_of(PARAMETERS, 10 * step + index) for index in range(2))
            for key in local:
                mean = (mine[key] + np.float32(2) * theirs[key]) / np.float32(3)
                local[key] = local[key] - mean
        assert_same(first[-1], second[-1])
        assert [result.version for result in first] == [1, 2, 3, 4, 5]
        for key, array in local.items():
            np.testing.assert_allclose(first[-1][key], array, rtol=1e-6)

    def test_two_workers_with_one_name_fence_each_other(self, clients, server, model, name):
        """The older one is told so at every push and never takes the name back by itself."""
        with clients.client(server.url) as other:
            first = model.worker("w0").open()
            first.push(ONES)
            second = other.model(name).worker("w0").open()

            for _ in range(2):
                with pytest.raises(Fenced):
                    first.push(ONES)
            first.close()

            assert second.push(ONES).version == 2
            second.close()

    # What an administrator does

    def test_hyperparameters_change_from_the_next_step_on(self, model):
        """NumPy's numbers are numbers, and a wrong value changes nothing."""
        with model.worker("w0") as worker:
            worker.push(ONES)
            model.set_hyperparameters(learning_rate=np.float32(0.5))
            with pytest.raises(InvalidArgument):
                model.set_hyperparameters(momentum=2.0)
            parameters = worker.push_pull(ONES)

        assert float(parameters["scale"]) == 0.5
        assert model.optimizer().learning_rate == 0.5

    def test_finalize_writes_the_average_into_the_parameters(self, client, name):
        """After it the parameters are the slot `average`."""
        optimizer = stepwell.SGD(1.0, use_ema=True, ema_momentum=0.5)
        model = client.create_model(name, PARAMETERS, optimizer=optimizer)
        with pytest.raises(NothingToFinalize):
            model.finalize()
        with model.worker("w0") as worker:
            worker.push(ONES)
            worker.push(ONES)
        average = model.pull(slot="average")

        version = model.finalize()

        assert_same(model.pull(), average)
        assert version == 3

    def test_after_a_restore_a_worker_opens_a_new_session_and_goes_on(self, model):
        """`StaleIncarnation` until it does: its gradient was computed in another history."""
        with model.worker("w0") as worker:
            worker.push(ONES)
            checkpoint = model.checkpoint()
            worker.push(ONES)
            model.restore(checkpoint)

            for _ in range(2):
                with pytest.raises(StaleIncarnation):
                    worker.push(ONES)
            restored = worker.open().pull()
            after = worker.push_pull(ONES)

        assert checkpoint in model.checkpoints()
        assert model.checkpoint_progress() is None
        assert_same(restored, {name: array - 1 for name, array in PARAMETERS.items()})
        assert_same(after, {name: array - 2 for name, array in PARAMETERS.items()})
        assert after.version > restored.version > 2

    def test_an_overwrite_is_a_new_history(self, model):
        """All parameters are replaced at once, and sessions are told."""
        with model.worker("w0") as worker:
            worker.push(ONES)
            version = model.overwrite(ONES)
            with pytest.raises(StaleIncarnation):
                worker.push(ONES)

        assert_same(model.pull(), ONES)
        assert model.pull().version == version == 2

    # The key promise: once

    @pytest.mark.parametrize("after_bytes", [0, 1, 60, 130])
    @pytest.mark.parametrize("answers", [1, 2])
    def test_a_push_whose_answer_is_lost_has_its_effect_once(
        self, clients, server, name, after_bytes, answers
    ):
        """The server applied it; the client asks again and is told, and the version is plus 1."""
        with (
            self.losing(server) as proxy,
            clients.client(proxy.url, timeout=PATIENT) as client,
        ):
            model = client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(1.0))
            with model.worker("w0") as worker:
                worker.push(ONES)

                proxy.lose_next_answer(after_bytes, answers)
                result = worker.push(ONES)
                third = worker.push(ONES)

            assert proxy.lost == answers
            assert (result.duplicate, result.version) == (True, 2)
            assert (third.duplicate, third.version) == (False, 3)
            assert_same(model.pull(), {key: array - 3 for key, array in PARAMETERS.items()})

    @pytest.mark.parametrize("after_bytes", [0, 150, 300])
    def test_push_pull_whose_answer_is_lost_has_its_effect_once(
        self, clients, server, name, after_bytes
    ):
        """Cut in the head, in the header or in the tensors: the parameters come all the same."""
        with (
            self.losing(server) as proxy,
            clients.client(proxy.url, timeout=PATIENT) as client,
        ):
            model = client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(1.0))
            with model.worker("w0") as worker:
                proxy.lose_next_answer(after_bytes)
                parameters = worker.push_pull(ONES)

            assert proxy.lost == 1
            assert parameters.version == 1
            assert_same(parameters, {key: array - 1 for key, array in PARAMETERS.items()})

    def test_an_unresolved_push_is_resolved_before_the_next(self, clients, server, name):
        """All answers are lost until the client gives up; later it learns, and counts on."""
        hasty = stepwell.Timeout(connect_s=30, read_s=30, retry_s=0.2)
        with (
            self.losing(server) as proxy,
            clients.client(proxy.url, timeout=hasty) as client,
        ):
            model = client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(1.0))
            with model.worker("w0") as worker:
                worker.push(ONES)
                for is_asked in (False, True):
                    proxy.lose_next_answer(answers=1000)
                    with pytest.raises(stepwell.errors.ConnectionFailed):
                        worker.push(ONES)
                    proxy.lose_next_answer(answers=0)
                    if is_asked:
                        assert worker.resolve().version == 4
                    result = worker.push(ONES)

            assert (result.version, result.duplicate) == (5, False)
            assert_same(model.pull(), {key: array - 5 for key, array in PARAMETERS.items()})

    def test_a_push_that_arrives_after_it_was_given_up_has_no_effect(self, clients, server, name):
        """The worker went on without it, with another gradient under the number it had."""
        hasty = stepwell.Timeout(connect_s=30, read_s=30, retry_s=0.2)
        with (
            FlakyProxy(server.url) as proxy,
            clients.client(proxy.url, timeout=hasty) as client,
        ):
            model = client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(1.0))
            with model.worker("w0") as worker:
                proxy.is_holding = True
                with pytest.raises(stepwell.errors.ConnectionFailed):
                    worker.push(gradients_of(PARAMETERS, 1))
                proxy.is_holding = False
                second = worker.push(ONES)
                late = proxy.release()

            assert late
            assert all(b" 409 " in answer and b'"fenced"' in answer for answer in late)
            assert (second.version, second.duplicate) == (1, False)
            assert_same(model.pull(), {key: array - 1 for key, array in PARAMETERS.items()})

    def test_a_restarted_server_is_not_noticed(self, clients, tmp_path):
        """SIGTERM in the middle of a push loop, same port, same data: no error, none lost."""
        with contextlib.ExitStack() as stack:
            first = start(tmp_path)
            stack.callback(lambda: first.process.poll() is None and first.stop())
            url = first.wait_for("ready")["address"]
            client = stack.enter_context(clients.client(url, timeout=PATIENT))
            model = client.create_model("m", PARAMETERS, optimizer=stepwell.SGD(1.0))
            goes_on, pushed = threading.Event(), []
            enough = threading.Event()

            def train():
                with model.worker("w0") as worker:
                    while not goes_on.is_set() or len(pushed) < target[0]:
                        pushed.append(worker.push(ONES))
                        if len(pushed) == 5:
                            enough.set()

            target = [0]
            with ThreadPoolExecutor(1) as threads:
                training = threads.submit(train)
                assert enough.wait(30)
                first.stop()
                second = start(tmp_path, port=int(url.rpartition(":")[2]))
                stack.callback(second.stop)
                second.wait_for("ready")
                target[0] = len(pushed) + 5
                goes_on.set()
                training.result(60)

            count = len(pushed)
            assert [result.version for result in pushed] == list(range(1, count + 1))
            assert_same(model.pull(), {key: array - count for key, array in PARAMETERS.items()})

    # Tokens

    def test_a_token_decides_what_may_be_done(self, clients, tmp_path):
        """None: 401. The role `read`: pulls, and 403 for the rest."""
        tokens = {role: token_of(tmp_path / "data", role) for role in ("read", "admin")}
        with (
            served(tmp_path / "data") as server,
            clients.client(server.url) as stranger,
            clients.client(server.url, tokens["read"]) as reader,
            clients.client(server.url, tokens["admin"]) as admin,
        ):
            admin.create_model("m", PARAMETERS, optimizer="sgd")

            with pytest.raises(Unauthenticated):
                stranger.models()
            assert_same(reader.model("m").pull(), PARAMETERS)
            with pytest.raises(Forbidden):
                reader.model("m").worker("w0").push(ONES)


def token_of(data_dir: Any, role: str) -> str:
    """Make a token in a data folder."""
    from stepwell_server.tokens import TokenStore

    data_dir.mkdir(exist_ok=True)
    return str(TokenStore(data_dir).create(role))


class Adam:
    """Keras's Adam in NumPy, operation for operation, for parameters of float32."""

    def __init__(self, parameters, learning_rate):
        self.parameters = {name: np.array(array) for name, array in parameters.items()}
        self._rate = np.float32(learning_rate)
        self._m = {name: np.zeros_like(array) for name, array in self.parameters.items()}
        self._v = {name: np.zeros_like(array) for name, array in self.parameters.items()}
        self._steps = 0

    def step(self, gradients):
        """Make one step."""
        self._steps += 1
        one, beta_1, beta_2 = np.float32(1), np.float32(0.9), np.float32(0.999)
        t = np.float32(self._steps)
        alpha = self._rate * np.sqrt(one - np.power(beta_2, t)) / (one - np.power(beta_1, t))
        for name, g in gradients.items():
            m, v = self._m[name], self._v[name]
            m = m + (g - m) * np.float32(1 - 0.9)
            v = v + (np.square(g) - v) * np.float32(1 - 0.999)
            step = m * alpha / (np.sqrt(v) + np.float32(1e-7))
            self._m[name], self._v[name] = m, v
            self.parameters[name] = np.asarray(self.parameters[name] - step)
