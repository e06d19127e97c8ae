"""`Client` keeps the contract, and what only a blocking client can show."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import tracemalloc
from textwrap import dedent

import numpy as np
import pytest
import stepwell

from tests.client.contract import ClientContract
from tests.client.models import ONES, PARAMETERS, assert_same


class TestClient(ClientContract):
    """See `contract.py`."""

    kind = "Client"


class Pusher:
    """A process of its own that pushes when it is told, as worker `w0`."""

    PROGRAM = """
        import sys
        import numpy as np
        import stepwell

        url, model = sys.argv[1:]
        with stepwell.Client(url) as client:
            worker = client.model(model).worker("w0").open()
            print("opened", flush=True)
            for line in sys.stdin:
                try:
                    print(worker.push({"scale": np.float32(1)}).outcome, flush=True)
                except stepwell.StepwellError as error:
                    print(error.code, flush=True)
    """

    def __init__(self, url, model):
        self._process = subprocess.Popen(
            [sys.executable, "-c", dedent(self.PROGRAM), url, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline() == "opened\n"

    def push(self):
        """Return what became of a push."""
        self._process.stdin.write("push\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


def test_two_processes_with_one_worker_name_fence_each_other(server):
    """The newer one goes on, the older one is told so for as long as it tries."""
    with stepwell.Client(server.url) as client:
        client.create_model("processes", PARAMETERS, optimizer=stepwell.SGD(1.0))
    with Pusher(server.url, "processes") as first:
        told = [first.push()]
        with Pusher(server.url, "processes") as second:
            told += [first.push(), second.push(), first.push(), second.push()]

    assert told == ["applied", "fenced", "applied", "fenced", "applied"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_a_worker_of_its_own(server):
    """It cannot use its parent's session, and neither harms the other."""
    with stepwell.Client(server.url) as client:
        model = client.create_model("forked", PARAMETERS, optimizer=stepwell.SGD(1.0))
        with model.worker("w0") as worker:
            worker.push(ONES)
            queue = multiprocessing.get_context("fork").SimpleQueue()

            def child():
                try:
                    worker.push(ONES)
                except stepwell.errors.UnknownSession:
                    queue.put("refused")
                worker.close()
                with model.worker("w1") as own:
                    queue.put(own.push(ONES).version)

            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            told = [queue.get(), queue.get()]
            process.join(30)

            assert worker.push(ONES).version == 3
    assert told == ["refused", 2]
    assert process.exitcode == 0


def test_a_client_is_shared_by_threads(server):
    """Eight workers of one client in eight threads: every push counts once."""
    with stepwell.Client(server.url) as client:
        model = client.create_model("threads", PARAMETERS, optimizer=stepwell.SGD(1.0))

        def train(index):
            with model.worker(f"w{index}") as worker:
                for _ in range(5):
                    worker.push_pull(ONES)

        threads = [threading.Thread(target=train, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert_same(model.pull(), {name: array - 40 for name, array in PARAMETERS.items()})


def test_a_large_push_is_not_copied(server):
    """64 MB of gradients are sent as views: the client allocates less than 8 MB for it."""
    gradients = {"w": np.zeros(8 << 20, np.float32), "v": np.zeros(8 << 20, np.float32)}
    with stepwell.Client(server.url) as client:
        model = client.create_model("large", gradients, optimizer=stepwell.SGD(1.0))
        with model.worker("w0") as worker:
            tracemalloc.start()
            worker.push(gradients)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        client.delete_model("large")

    assert peak < 8 << 20


def test_a_large_pull_is_received_into_one_buffer(server):
    """64 MB of parameters take 64 MB, and a little for the pieces on the way."""
    parameters = {"w": np.zeros(8 << 20, np.float32), "v": np.zeros(8 << 20, np.float32)}
    with stepwell.Client(server.url) as client:
        model = client.create_model("pulled", parameters, optimizer=stepwell.SGD(1.0))
        tracemalloc.start()
        pulled = model.pull()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        client.delete_model("pulled")

    assert pulled["w"].base is not None
    assert peak < (64 << 20) + (8 << 20)
