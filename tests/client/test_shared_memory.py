"""Tests of `stepwell.shared_memory` with real servers: what memory alone can show, and failures."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
from textwrap import dedent
from unittest.mock import Mock

import numpy as np
import pytest
import stepwell
from stepwell import connection
from stepwell.calls import Shares
from stepwell.errors import InvalidArgument, StaleIncarnation
from stepwell.memory_connection import MemoryConnection

from tests.client.adapter import PATIENT
from tests.client.buffer_contract import fill, minus
from tests.client.contract import token_of
from tests.client.memory_witness import witnessed
from tests.client.models import ONES, PARAMETERS, assert_same
from tests.servers import hosted, served, start

SGD = stepwell.SGD(1.0)
LARGE = {"w": np.zeros(4 << 20, np.float32)}
BOTH = [Shares.GRADIENTS, Shares.PARAMETERS]


@pytest.fixture
def witness():
    """Let small models share memory, and see what does."""
    with witnessed() as witness:
        yield witness


@pytest.fixture
def client(server):
    """Return a client of the shared server."""
    with stepwell.Client(server.url, timeout=PATIENT) as client:
        yield client


@pytest.fixture
def model(client, request):
    """Return a model with SGD at learning rate 1."""
    name = f"m-{abs(hash(request.node.name)):x}"
    yield client.create_model(name, PARAMETERS, optimizer=SGD)
    client.delete_model(name)


def descriptors(pid="self"):
    """Return how many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


# What it is for


def test_a_push_from_a_gradient_buffer_copies_nothing(client):
    """No byte of 16 MB is copied here, and the same pages are pushed each time."""
    model = client.create_model("in-place", LARGE, optimizer=SGD)
    with model.worker("w0") as worker:
        first = fill(worker.gradient_buffer(), 1)
        worker.push(first)
        tracemalloc.start()
        worker.push(fill(worker.gradient_buffer(), 2))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert (first["w"] == 2).all()
        assert peak < 1 << 20
        assert model.pull()["w"][0] == -3
    client.delete_model("in-place")


def test_a_view_is_the_servers_memory(client, witness):
    """A second look at the same version shows the same pages."""
    model = client.create_model("looked-at", LARGE, optimizer=SGD)
    with model.worker("w0") as worker:
        addresses = set()
        for _ in range(2):
            with worker.view() as parameters:
                addresses.add(parameters["w"].ctypes.data)
                assert not parameters["w"].flags.owndata

    assert len(addresses) == 1
    client.delete_model("looked-at")


def test_small_models_use_the_wire(model):
    """A region costs more than it saves."""
    with model.worker("w0") as worker:
        worker.push_pull(ONES)
        assert worker._memory._connection is None


def test_transport_http_never_opens_the_socket(server, witness, monkeypatch):
    """Whoever asks for the wire gets it, with buffers and views of plain memory."""
    monkeypatch.setattr(MemoryConnection, "__init__", None)
    with stepwell.Client(server.url, transport="http") as client:
        model = client.create_model("by-wire", PARAMETERS, optimizer=SGD)
        with model.worker("w0") as worker:
            worker.push(fill(worker.gradient_buffer(), 1))
            with worker.view() as parameters:
                assert_same(parameters, minus(1))
        client.delete_model("by-wire")

    assert not witness.shared
    assert not witness.sent


@pytest.mark.parametrize("kind", [stepwell.Client, stepwell.AsyncClient])
def test_a_transport_is_auto_or_http(kind):
    """A wrong word is refused before anything is done."""
    with pytest.raises(InvalidArgument, match="'shm'"):
        kind(transport="shm")


# Gradients that wait


def test_a_gradient_that_waits_is_not_changed_by_what_its_worker_writes(tmp_path, witness):
    """The region is the server's until the push is settled; the next buffer is another one."""
    with (
        served(tmp_path, STEPWELL_PUSH_WAIT_S="0") as server,
        stepwell.Client(server.url) as client,
    ):
        model = client.create_model("m", PARAMETERS, optimizer=SGD, consistency=stepwell.Sync(2))
        with model.worker("w0") as first, model.worker("w1") as second:
            pushing = threading.Thread(target=first.push, args=(fill(first.gradient_buffer(), 1),))
            pushing.start()
            while not witness.shared:  # until it is answered `waiting`
                client.about()  # gives the other thread time
            fill(first.gradient_buffer(), 100)
            second.push(fill(second.gradient_buffer(), 3))
            pushing.join()

        assert_same(model.pull(), minus(2))


# Failures


def test_a_crashed_server_comes_back_and_the_worker_goes_on(tmp_path, witness):
    """History was cut, as ever under `memory`: open, pull, and memory is shared again."""
    memory = ("--durability", "memory")
    first = start(tmp_path, *memory)
    url = first.wait_for("ready")["address"]
    with stepwell.Client(url, timeout=PATIENT) as client:
        model = client.create_model("m", PARAMETERS, optimizer=SGD)
        with model.worker("w0") as worker:
            worker.push(fill(worker.gradient_buffer(), 1))
            with worker.view() as parameters:
                first.kill()
                assert_same(parameters, minus(1))  # nobody takes it away
                second = start(tmp_path, *memory, port=int(url.rpartition(":")[2]))
                second.wait_for("ready")
                with pytest.raises(StaleIncarnation):
                    worker.push(ONES)
            worker.open().pull()
            del witness.shared[:]
            worker.push(fill(worker.gradient_buffer(), 1))
            worker.pull()
            assert witness.shared == BOTH
            assert_same(model.pull(), minus(1))
        assert second.stop() == 0


def test_a_server_stops_at_once_though_a_worker_is_connected(tmp_path, witness):
    """An idle worker with a region and a view does not use up its grace."""
    with (
        served(tmp_path, STEPWELL_SHUTDOWN_GRACE_S="600") as server,
        stepwell.Client(server.url) as client,
        client.create_model("m", PARAMETERS, optimizer=SGD).worker("w0") as worker,
    ):
        worker.push(ONES)
        with worker.view() as parameters:
            assert server.stop() == 0
            assert_same(parameters, minus(1))
    assert Shares.GRADIENTS in witness.shared


@pytest.mark.parametrize("harm", ["gone", "refused", "no socket"])
def test_without_the_socket_tensors_go_over_the_wire(tmp_path, witness, harm):
    """As for a server in a container."""
    with served(tmp_path) as server, stepwell.Client(server.url) as client:
        path = tmp_path / "stepwell.sock"
        path.unlink()
        if harm == "refused":
            with socket.socket(socket.AF_UNIX) as closed:
                closed.bind(str(path))  # where nobody listens
        if harm == "no socket":
            path.write_text("")
        model = client.create_model("m", PARAMETERS, optimizer=SGD)
        with model.worker("w0") as worker:
            worker.push(fill(worker.gradient_buffer(), 1))
            with worker.view() as parameters:
                assert_same(parameters, minus(1))

    assert not witness.shared


def test_a_stranger_at_the_socket_is_not_told_the_token(tmp_path, witness):
    """The URL may be a forwarded port, whose server's path is somebody else's socket here."""
    token = token_of(tmp_path, "admin")
    with served(tmp_path) as server, stepwell.Client(server.url, token) as client:
        path = tmp_path / "stepwell.sock"
        path.unlink()
        heard = []
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.bind(str(path))
            stranger.listen()
            stranger.settimeout(60)

            def listen():
                wire, _ = stranger.accept()
                with wire:
                    heard.append(wire.recv(65536))
                    wire.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n")
                    wire.sendall(b'{"status":"ok"}')
                    heard.append(wire.recv(65536))

            thread = threading.Thread(target=listen)
            thread.start()
            model = client.create_model("m", PARAMETERS, optimizer=SGD)
            with model.worker("w0") as worker:
                worker.gradient_buffer()
                thread.join()

        assert heard[0].startswith(b"GET /healthz ")
        assert token.encode() not in b"".join(heard)
        assert heard[1] == b""


def test_another_server_at_the_socket_is_noticed(tmp_path, witness):
    """Two servers that were told the same path: the second one's workers use the wire."""
    one, other = tmp_path / "a", tmp_path / "b"
    shared = str(tmp_path / "socket")
    with hosted(one, memory_socket=shared), hosted(other) as server:
        server.application.memory_socket = shared
        with stepwell.Client(server.url) as client:
            model = client.create_model("m", PARAMETERS, optimizer=SGD)
            with model.worker("w0") as worker:
                worker.push(ONES)
            assert_same(model.pull(), minus(1))

    assert (witness.shared, witness.sent) == ([], [Shares.GRADIENTS])


def test_a_model_that_was_created_anew_with_other_tensors_is_told(client, witness):
    """Its regions are not taken for the old ones."""
    model = client.create_model("anew", PARAMETERS, optimizer=SGD)
    with model.worker("w0") as worker:
        worker.push_pull(ONES)
        client.delete_model("anew")
        client.create_model("anew", {"other": np.zeros(3, np.float32)}, optimizer=SGD)
        with pytest.raises(stepwell.errors.LayoutMismatch):
            worker.pull()
    client.delete_model("anew")


def test_an_interrupted_call_leaves_no_answer_to_the_next_one(model, witness, monkeypatch):
    """Ctrl-C while a worker waits for an answer: the next call gets its own."""
    with model.worker("w0") as worker:
        worker.push(ONES)
        with monkeypatch.context() as patch:
            patch.setattr(connection, "Response", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                worker.push(ONES)
        result = worker.push(ONES)

        assert_same(worker.pull(), minus(result.version))
        assert not worker.push(ONES).duplicate


# Processes, threads and tasks


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_leaves_its_parents_memory_alone(model, witness):
    """It can share some of its own; its parent's connection is closed in it."""
    with model.worker("w0") as worker:
        worker.push(ONES)
        context = multiprocessing.get_context("fork")
        told = context.SimpleQueue()

        def child():
            told.put(worker._memory._connection._socket.fileno())
            worker.close()
            with model.worker("w1") as own:
                told.put(own.push(fill(own.gradient_buffer(), 1)).version)

        process = context.Process(target=child)
        process.start()
        process.join(60)

        assert process.exitcode == 0
        assert [told.get(), told.get()] == [-1, 2]
        assert worker.push(ONES).version == 3
    assert witness.shared == [Shares.GRADIENTS] * 2


TRAINER = """
    import os, sys
    import numpy as np
    import stepwell
    from stepwell import shared_memory

    shared_memory.LEAST_BYTES = 0
    url, model, worker, dies = sys.argv[1:]
    with stepwell.Client(url) as client, client.model(model).worker(worker) as worker:
        for step in range(20):
            for array in worker.gradient_buffer().values():
                array[...] = 1
            worker.push(worker.gradient_buffer())
            with worker.view() as parameters:
                assert len({float(x) for a in parameters.values() for x in np.unique(a)}) == 1
        assert worker._memory._connection is not None
        if dies == "no":
            sys.exit(0)
        with worker.view() as parameters:
            print("dying", flush=True)
            while True:
                for array in worker.gradient_buffer().values():
                    array[...] = np.nan
"""


def test_workers_that_die_while_they_write_and_read_harm_nobody(client):
    """Two are killed in the middle, two train on; the sum is exact and no version stays held."""
    zeros = {"a": np.zeros(1000, np.float32), "b": np.zeros(7, np.float32)}
    model = client.create_model("deaths", zeros, optimizer=SGD)
    program = dedent(TRAINER)
    trainers = [
        subprocess.Popen(
            [sys.executable, "-c", program, client._driver._endpoint.url, "deaths", f"w{i}", dies],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i, dies in enumerate(["yes", "no", "yes", "no"])
    ]
    for trainer in trainers[::2]:
        assert trainer.stdout.readline() == "dying\n"
        trainer.send_signal(signal.SIGKILL)
    codes = [trainer.wait(60) for trainer in trainers]
    for trainer in trainers:
        trainer.stdout.close()

    assert codes == [-signal.SIGKILL, 0, -signal.SIGKILL, 0]
    with model.worker("w4") as worker:
        for step in range(6):
            parameters = worker.push_pull({key: array + 1 for key, array in zeros.items()})
            for array in parameters.values():
                assert (array == -(81 + step)).all()
    client.delete_model("deaths")


@pytest.mark.parametrize("call", ["push", "pull"])
def test_a_cancelled_call_is_over_when_it_says_so(server, witness, call):
    """No thread reads or writes the caller's arrays afterwards, and the next calls work."""

    async def main():
        async with stepwell.AsyncClient(server.url) as client:
            name = f"cancelled-{call}"
            consistency = stepwell.Sync(2) if call == "push" else None
            model = await client.create_model(
                name, PARAMETERS, optimizer=SGD, consistency=consistency
            )
            async with model.worker("w0") as worker, model.worker("w1") as other:
                await worker.pull()
                pending = worker.push(ONES) if call == "push" else worker.pull(min_version=1)
                task = asyncio.ensure_future(pending)
                while not worker._memory._lock.locked():
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert not worker._memory._lock.locked()
                assert worker._memory._connection is None  # it was interrupted, not waited for
                if call == "push":
                    await asyncio.gather(worker.push(ONES), other.push(ONES))
                else:
                    await worker.push(ONES)
                parameters = await worker.pull()
            await client.delete_model(name)
            return parameters

    assert_same(asyncio.run(main()), minus(1))


def test_sessions_leave_nothing_behind(client, server, witness):
    """Two hundred workers, some closed and some forgotten: no descriptor stays open anywhere."""
    model = client.create_model("sessions", PARAMETERS, optimizer=SGD)

    def work(index):
        worker = model.worker(f"w{index % 5}").open()
        worker.push(fill(worker.gradient_buffer(), 1))
        with worker.view() as parameters:
            parameters["scale"].item()
        worker.pull()
        if index % 2:
            worker.close()

    for index in range(10):
        work(index)
    gc.collect()
    client.about()
    before = descriptors(), descriptors(server.process.pid)
    for index in range(200):
        work(index)
    gc.collect()
    client.about()

    after = descriptors(), descriptors(server.process.pid)
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 3  # the last connection may be ending
    assert_same(model.pull(), minus(210))
    client.delete_model("sessions")


OTHER_SYSTEM = """
    import fcntl, mmap, os, socket, sys, urllib.request
    sys.platform = "darwin"
    for room, names in {
        fcntl: ["F_GET_SEALS", "F_ADD_SEALS", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL"],
        mmap: ["MAP_POPULATE"],
        os: ["memfd_create", "MFD_CLOEXEC", "MFD_ALLOW_SEALING", "O_PATH"],
        socket: ["SO_PEERCRED", "MSG_CMSG_CLOEXEC"],
    }.items():
        for name in names:
            delattr(room, name)
    import numpy as np
    import stepwell
    from stepwell import shared_memory

    shared_memory.LEAST_BYTES = 0
    with stepwell.Client(sys.argv[1]) as client:
        model = client.create_model("elsewhere", {"w": np.zeros(3, "f4")}, optimizer="sgd")
        with model.worker("w0") as worker:
            worker.push(worker.gradient_buffer())
            with worker.view() as parameters:
                print(parameters["w"].tolist())
        client.delete_model("elsewhere")
"""


def test_other_systems_use_the_wire(server):
    """What Linux alone has is not missed."""
    program = [sys.executable, "-c", dedent(OTHER_SYSTEM), server.url]

    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.stderr, done.returncode) == ("[0.0, 0.0, 0.0]\n", "", 0)
