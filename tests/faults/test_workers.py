"""Worker processes that die, stop and wake up, and networks that are slow: the others go on.

Real processes over loopback: SIGKILL is a machine that is gone, SIGSTOP one that hangs.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import numpy as np
import pytest
import stepwell

from tests import servers
from tests.faults.proxy import PIECE_BYTES, Fault, FaultyProxy, Schedule
from tests.servers import DEADLINE_S, ServerProcess, served

ROOT = Path(__file__).resolve().parents[2]
LEASE_S = 1.0
SLACK_S = 10.0
"""What a busy machine may take for a step and a look at the leases, beside the lease itself."""

PROGRAM = """
import sys, time
import numpy as np, stepwell

url, name, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = stepwell.Client(url, transport="http", timeout=stepwell.Timeout(retry_s=60.0))
worker = client.model(sys.argv[4]).worker(name)
gradient = np.zeros(4, np.float32)
gradient[index] = -1.0
print("open", worker.pull().version, flush=True)
for line in sys.stdin:
    counts = {}
    for n in range(int(line)):
        outcome = worker.push({"clock": gradient}).outcome
        counts[outcome] = counts.get(outcome, 0) + 1
        worker.pull()
    epoch = worker._session.epoch
    print(counts.get("applied", 0), counts.get("buffered", 0), epoch, flush=True)
"""


class Process:
    """A worker in a process of its own, which does nothing until it is told to."""

    def __init__(self, url: str, model: str, index: int) -> None:
        self.name = f"w{index}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, self.name, str(index), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def tell(self, count: int) -> None:
        """Have it push so often, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def hear(self) -> list[str]:
        """Return what it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def push(self, count: int) -> tuple[int, int, int]:
        """Push so often; returns how many were applied and buffered, and the session's epoch."""
        self.tell(count)
        applied, buffered, epoch = map(int, self.hear())
        return applied, buffered, epoch

    def end(self) -> None:
        """Kill it, in whatever state it is."""
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def processes(url: str, model: str, count: int) -> Iterator[list[Process]]:
    """Give so many workers, each with an open session."""
    workers = [Process(url, model, index) for index in range(count)]
    try:
        for worker in workers:
            assert worker.hear()[0] == "open"
        yield workers
    finally:
        for worker in workers:
            worker.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server; each test makes models of its own."""
    with served(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[stepwell.Client]:
    """A client of it, that shares no memory with it."""
    with stepwell.Client(server.url, transport="http") as client:
        yield client


def create(client: stepwell.Client, name: str, mode: Any) -> stepwell.Model:
    """Create a model whose parameters are a vector clock of the pushes that were applied."""
    zeros = {"clock": np.zeros(4, np.float32)}
    return client.create_model(name, zeros, optimizer=stepwell.SGD(1.0), consistency=mode)


def who(model: stepwell.Model, url: str) -> dict[str, dict[str, Any]]:
    """Return what is known of each worker."""
    with servers.http(url) as http:
        listed = http.get(f"/v1/models/{model.name}/workers").json()["workers"]
    return {worker["worker"]: worker for worker in listed}


MODES = {
    "async": stepwell.Async(lease_s=LEASE_S),
    "sync": stepwell.Sync(3, lease_s=LEASE_S),
    "arrival": stepwell.Sync("all", reduction="arrival", lease_s=LEASE_S),
    "quorum": stepwell.Quorum(workers=3, quorum=3, lease_s=LEASE_S),
    "buffered": stepwell.Buffered(2, lease_s=LEASE_S),
    "bounded": stepwell.Bounded(1, lease_s=LEASE_S),
}


@pytest.mark.parametrize("name", MODES)
def test_when_a_worker_is_killed_the_others_go_on_within_its_lease(name, server, client):
    """In every mode; and the parameters count exactly what they were told."""
    model = create(client, f"killed-{name}", MODES[name])
    with processes(server.url, model.name, 3) as workers:
        for worker in workers:
            worker.tell(3)
        told = [list(map(int, worker.hear())) for worker in workers]
        workers[2].process.kill()
        began = time.monotonic()

        for worker in workers[:2]:
            worker.tell(5)
        told += [list(map(int, worker.hear())) for worker in workers[:2]]

        took_s = time.monotonic() - began
        clock = model.pull()["clock"]
    counted = sum(applied for applied, _, _ in told)
    assert took_s < LEASE_S + SLACK_S
    if name in ("async", "bounded"):
        assert (counted, clock.tolist()) == (19, [8.0, 8.0, 3.0, 0.0])
    elif name == "buffered":
        gathered = sum(buffered for _, buffered, _ in told)
        assert counted + gathered == 19
        assert counted == model.describe()["version"] == 9
    else:
        assert clock.sum() == pytest.approx(model.describe()["version"], abs=1e-4)
        assert counted >= 9 + 2 * 4


def test_a_worker_that_was_stopped_for_longer_than_its_lease_comes_back_by_itself(server, client):
    """It is told that its session ended, opens another, and nothing of it counts twice."""
    model = create(client, "stopped", stepwell.Async(lease_s=LEASE_S))
    with processes(server.url, model.name, 1) as (worker,):
        before = worker.push(4)
        worker.process.send_signal(SIGSTOP)
        worker.tell(6)
        deadline = time.monotonic() + DEADLINE_S
        while who(model, server.url)["w0"]["is_open"]:
            assert time.monotonic() < deadline, "the session never ended"
            threading.Event().wait(0.05)
        stopped = model.pull()["clock"].tolist()

        worker.process.send_signal(SIGCONT)

        after = tuple(map(int, worker.hear()))
        assert (before[0], after[0]) == (4, 6)
        assert before[2] < after[2]
        assert stopped == [4.0, 0.0, 0.0, 0.0]
        assert model.pull()["clock"].tolist() == [10.0, 0.0, 0.0, 0.0]


def test_a_worker_that_stops_in_the_middle_of_its_pushes_loses_and_repeats_none(server, client):
    """Stopped anywhere, again and again: a push whose answer it slept through counts once."""
    model = create(client, "naps", stepwell.Async(lease_s=0.2))
    with processes(server.url, model.name, 1) as (worker,):
        worker.tell(300)
        for _ in range(4):
            worker.process.send_signal(SIGSTOP)
            threading.Event().wait(0.5)
            worker.process.send_signal(SIGCONT)
            threading.Event().wait(0.05)
        applied = int(worker.hear()[0])

        assert applied == 300
        assert model.pull()["clock"].tolist() == [300.0, 0.0, 0.0, 0.0]


def test_a_gradient_that_comes_for_longer_than_a_lease_holds_it(server, client):
    """Through a slow network; its connection takes nothing else, but the heartbeat is cut off."""
    zeros = {"a": np.zeros(1_000_000, np.float32)}
    mode = stepwell.Async(lease_s=LEASE_S)
    model = client.create_model("slow", zeros, optimizer=stepwell.SGD(1.0), consistency=mode)
    slow = Schedule(faults=[Fault(bytes_per_s=1.3e6)])
    with (
        FaultyProxy(server.url, slow) as proxy,
        stepwell.Client(proxy.url, transport="http") as far,
    ):
        worker = far.model("slow").worker("w0").open()
        worker._heartbeat.stop()
        epoch = worker._session.epoch
        began = time.monotonic()
        worker._heartbeat.start = lambda: None

        result = worker.push({"a": -np.ones(1_000_000, np.float32)})

        took_s = time.monotonic() - began
        assert took_s > 2 * LEASE_S
        assert (result.outcome, worker._session.epoch) == ("applied", epoch)
        worker.close()
    assert model.pull()["a"].max() == 1.0


def test_a_gradient_that_stands_still_for_a_lease_is_sent_again_and_counts_once(server, client):
    """Its half is thrown away, and its worker told, which opens a session and sends it anew."""
    zeros = {"a": np.zeros(1_000_000, np.float32)}
    lease_s = 0.4
    mode = stepwell.Async(lease_s=lease_s)
    model = client.create_model("stalls", zeros, optimizer=stepwell.SGD(1.0), consistency=mode)
    stalls = Schedule(faults=[Fault(bytes_per_s=PIECE_BYTES / (3 * lease_s))])
    with (
        FaultyProxy(server.url, stalls) as proxy,
        stepwell.Client(proxy.url, transport="http") as far,
    ):
        worker = far.model("stalls").worker("w0").open()
        worker._heartbeat.stop()
        worker._heartbeat.start = lambda: None
        epoch = worker._session.epoch
        proxy.schedule = Schedule()

        result = worker.push({"a": -np.ones(1_000_000, np.float32)})

        assert (result.outcome, result.version) == ("applied", 1)
        assert worker._session.epoch > epoch
        worker.close()
    assert set(model.pull()["a"].tolist()) == {1.0}


def test_after_a_restart_of_the_server_all_leases_begin_anew(tmp_path):
    """Workers whose server was away for several leases go on in their sessions."""
    with served(tmp_path / "data") as first:
        port = int(first.url.rpartition(":")[2])
        with stepwell.Client(first.url, transport="http") as client:
            model = create(client, "m", stepwell.Sync(2, lease_s=30.0))
            with processes(first.url, model.name, 2) as workers:
                for worker in workers:
                    worker.tell(3)
                epochs = [worker.hear()[2] for worker in workers]
                for worker in workers:
                    worker.tell(200)
                first.kill()
                second = servers.start(tmp_path / "data", port=port)
                second.wait_for("ready")

                told = [worker.hear() for worker in workers]
                described, clock = model.describe(), model.pull()["clock"]
            second.stop()

    assert [int(applied) for applied, _, _ in told] == [200, 200]
    assert [epoch for _, _, epoch in told] == epochs
    assert described["version"] == 203
    assert clock[:2].tolist() == pytest.approx([101.5, 101.5])
