"""Servers and workers that stop in the middle: by SIGTERM, by SIGSTOP, by another one's coming."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import numpy as np
import pytest
import stepwell

from tests import servers
from tests.faults.proxy import Fault, FaultyProxy, Schedule
from tests.servers import DEADLINE_S, served

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(240)
def test_a_push_that_a_stop_cuts_in_half_is_made_once_by_the_next_server(tmp_path):
    """100 MB are half sent when SIGTERM comes: the worker waits, sends them again, and goes on."""
    zeros = {"a": np.zeros(25_000_000, np.float32)}
    results: list[stepwell.PushResult] = []
    flags = {"STEPWELL_SHUTDOWN_GRACE_S": "1", "STEPWELL_CHECKPOINT_EVERY_S": "100000"}
    with served(tmp_path / "data", **flags) as server:
        port = int(server.url.rpartition(":")[2])
        with stepwell.Client(server.url, transport="http") as client:
            model = client.create_model("m", zeros, optimizer=stepwell.SGD(1.0))
            before = model.describe()
    with FaultyProxy(server.url, Schedule(faults=[Fault(bytes_per_s=40e6)])) as proxy:
        first = servers.start(tmp_path / "data", port=port, **flags)
        first.wait_for("ready")
        with stepwell.Client(proxy.url, transport="http") as client:
            worker = client.model("m").worker("w").open()
            passed = proxy.passed
            pushing = threading.Thread(
                target=lambda: results.append(worker.push({"a": -np.ones(25_000_000, np.float32)}))
            )
            pushing.start()
            proxy.wait_for(passed + 50_000_000)

            assert first.stop() == 0
            proxy.schedule = Schedule()
            second = servers.start(tmp_path / "data", port=port, **flags)
            second.wait_for("ready")
            pushing.join(DEADLINE_S)

            after = client.model("m").describe()
            pulled = client.model("m").pull()
            worker.close()
        second.stop()

    assert [(r.outcome, r.version) for r in results] == [("applied", 1)]
    assert (before["incarnation"], 1) == (after["incarnation"], after["version"])
    assert pulled["a"].min() == pulled["a"].max() == 1.0


PUSHER = """
import sys
import numpy as np, stepwell
client = stepwell.Client(sys.argv[1])
worker = client.model("m").worker("w").open()
print("open", flush=True)
done = 0
try:
    for line in sys.stdin:
        for n in range(int(line)):
            worker.push({"a": -np.ones(3, np.float32)})
            done += 1
        print("pushed", flush=True)
except stepwell.errors.StepwellError as error:
    print(error.code, done, flush=True)
"""


class Pusher:
    """A worker process that is always called `w`."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PUSHER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.hear() == "open"

    def push(self, count: int) -> None:
        """Have it push, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """Return what it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End it, in whatever state it is."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def model(tmp_path):
    """Return a server with a model of zeros, and the model."""
    zeros = {"a": np.zeros(3, np.float32)}
    with (
        served(tmp_path / "data", "--durability", "always") as server,
        stepwell.Client(server.url) as client,
    ):
        yield server, client.create_model("m", zeros, optimizer=stepwell.SGD(1.0))


def test_a_worker_that_wakes_up_after_another_took_its_name_is_fenced(model):
    """A process is stopped as a hung machine is, replaced, and wakes up: it changes nothing."""
    server, served_model = model
    zombie = Pusher(server.url)
    zombie.push(5)
    assert zombie.hear() == "pushed"
    zombie.process.send_signal(SIGSTOP)
    zombie.push(5)  # it will do that when it wakes up
    other = Pusher(server.url)
    other.push(3)
    assert other.hear() == "pushed"

    zombie.process.send_signal(SIGCONT)

    assert zombie.hear() == "fenced 5"
    other.push(1)
    assert other.hear() == "pushed"
    assert served_model.pull()["a"].tolist() == [9.0, 9.0, 9.0]
    zombie.close()
    other.close()


def test_two_processes_with_one_name_do_not_push_twice_nor_fence_each_other_for_ever(model):
    """The later one goes on, the earlier one ends with `fenced`; each push counts once."""
    server, served_model = model
    earlier = Pusher(server.url)
    earlier.push(100_000)

    later = Pusher(server.url)
    later.push(20)

    code, done = earlier.hear().split()
    assert (code, later.hear()) == ("fenced", "pushed")
    assert served_model.pull().version == int(done) + 20
    earlier.close()
    later.close()
