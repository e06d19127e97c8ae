"""Create, delete, restore, push and pull all at once: each answer is a documented one."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import stepwell
from stepwell_core.errors import StepwellError, by_code

from tests.servers import DEADLINE_S, served

SECONDS = 5.0
WORKERS = 4
ADMINISTRATORS = 2
NAMES = ("a", "b")
ZEROS = {"x": np.zeros((50, 7), np.float32), "y": np.zeros(3, np.float32)}
SERVER_ERRORS = {"error", "internal_error", "checkpoint_invalid", "journal_invalid", "store_failed"}


class Caller:
    """One thread that does this and that to the models.

    Args:
        url: Of the server.
        seed: Of what it does.
        is_administrator: Whether it makes models and ends their histories; else it is a worker.

    Attributes:
        codes: How often each answer came.
        failures: What should never come.
    """

    def __init__(self, url: str, seed: int, is_administrator: bool) -> None:
        self._rng = random.Random(seed)
        timeout = stepwell.Timeout(retry_s=20.0)
        self._client = stepwell.Client(url, timeout=timeout)
        self._worker: stepwell.Worker | None = None
        self._name = f"w{seed}"
        self._acts = (
            [
                *(self._delete, self._fork, self._overwrite, self._checkpoint),
                *[self._create] * 4,
                *[self._restore] * 2,
            ]
            if is_administrator
            else [*[self._push] * 6, *[self._pull] * 3, self._open]
        )
        self.codes: Counter[str] = Counter()
        self.failures: list[BaseException] = []

    def run(self, is_over: Callable[[], bool]) -> None:
        """Make calls until it is time."""
        while not is_over():
            act = self._rng.choice(self._acts)
            try:
                act(self._rng.choice(NAMES))
                self.codes[f"{act.__name__} ok"] += 1
            except StepwellError as error:
                self.codes[f"{act.__name__} {error.code}"] += 1
                if error.code in SERVER_ERRORS or error.code not in by_code():
                    self.failures.append(error)
            except BaseException as error:
                self.failures.append(error)
        self._client.close()

    def _create(self, name: str) -> None:
        self._client.create_model(
            name,
            ZEROS,
            optimizer=stepwell.SGD(1.0, momentum=0.5),
            exist_ok=self._rng.random() < 0.5,
        )

    def _delete(self, name: str) -> None:
        self._client.delete_model(name)

    def _open(self, name: str) -> None:
        self._worker = self._client.model(name).worker(self._name).open()

    def _push(self, name: str) -> None:
        if self._worker is None:
            self._open(name)
        assert self._worker is not None
        try:
            self._worker.push({name: np.ones_like(array) for name, array in ZEROS.items()})
        except StepwellError:
            self._worker = None
            raise

    def _pull(self, name: str) -> None:
        pulled = self._client.model(name).pull()
        values = {float(value) for array in pulled.values() for value in (array.min(), array.max())}
        assert len(values) == 1, f"a pull of {name} is torn: {values}"

    def _checkpoint(self, name: str) -> None:
        self._client.model(name).checkpoint()

    def _restore(self, name: str) -> None:
        model = self._client.model(name)
        if checkpoints := model.checkpoints():
            model.restore(self._rng.choice(checkpoints))

    def _overwrite(self, name: str) -> None:
        value = self._rng.randrange(9)
        self._client.model(name).overwrite(
            {name: np.full_like(array, value) for name, array in ZEROS.items()}
        )

    def _fork(self, name: str) -> None:
        model = self._client.model(name)
        if checkpoints := model.checkpoints():
            model.fork(self._rng.choice(checkpoints), self._rng.choice(NAMES))


def has_seen_all(callers: list[Caller]) -> bool:
    """Return whether each call that matters was made at least once, with success."""
    acts = ("_push", "_pull", "_restore", "_delete")
    return all(any(caller.codes[f"{act} ok"] for caller in callers) for act in acts)


@pytest.mark.parametrize("durability", ["everysec", "always"])
def test_a_storm_of_changes_gets_documented_answers_and_the_server_works_on(durability, tmp_path):
    """No 500, no torn pull, nothing in the log, a clean stop, and a start that recovers all."""
    flags = ("--durability", durability, "--checkpoint-every-versions", "50")
    with served(tmp_path / "data", *flags) as server:
        callers = [
            Caller(server.url, seed, seed < ADMINISTRATORS)
            for seed in range(ADMINISTRATORS + WORKERS)
        ]
        began = time.monotonic()

        def is_over() -> bool:
            spent_s = time.monotonic() - began
            return spent_s > DEADLINE_S / 2 or (spent_s > SECONDS and has_seen_all(callers))

        threads = [threading.Thread(target=caller.run, args=(is_over,)) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        alive = [thread for thread in threads if thread.is_alive()]
        with stepwell.Client(server.url) as client:
            after = client.create_model("after", ZEROS, optimizer=stepwell.SGD(1.0))
            with after.worker("w") as worker:
                worker.push({name: -np.ones_like(array) for name, array in ZEROS.items()})
            names = client.models()
            versions = {name: client.model(name).describe()["version"] for name in names}
        code = server.stop()
    with served(tmp_path / "data", *flags) as server, stepwell.Client(server.url) as client:
        recovered = {name: client.model(name).describe()["version"] for name in client.models()}

    assert [failure for caller in callers for failure in caller.failures] == []
    assert alive == []
    assert code == 0
    assert recovered == versions
    complaints = [e for e in server.events if e.get("level") in ("error", "critical")]
    assert complaints == []
    assert has_seen_all(callers), [caller.codes for caller in callers]
