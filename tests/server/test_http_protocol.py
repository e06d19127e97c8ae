"""A pull is never torn, however slowly it is read.

Parameters begin at 0 and every push subtracts 1 from each of them, so in version n all are -n: one
element that is not shows a pull that mixes versions.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import threading
from typing import Any

import msgpack
import numpy as np
import pytest
from stepwell_core.layout import Layout, Tensor

from tests import servers
from tests.server.calls import MSGPACK, definition, packed, unpacked
from tests.server.connections import Caller

LARGE = Layout([Tensor("w", (8 << 20,), "float32")])  # 32 MiB, far more than sockets buffer
SMALL = Layout([Tensor("w", (15_000,), "float32")])  # just below 64 KiB
MEDIUM = Layout([Tensor("w", (1 << 19,), "float32")])
STEPS = 10
DESCENT = {"class_name": "SGD", "config": {"learning_rate": 1.0}}


def call(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b""
) -> tuple[int, bytes]:
    """Return status and body of the answer."""
    headers = {"Accept": MSGPACK, "Content-Type": MSGPACK}
    connection.request(method, path, body=body or None, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def create(caller: Caller, name: str, layout: Layout) -> str:
    """Create a model whose parameters are 0; returns its path."""
    header = definition(name, layout, optimizer=DESCENT, has_values=False)
    with caller.session() as connection:
        assert call(connection, "POST", "/v1/models", packed(header))[0] == 201
    return f"/v1/models/{name}"


class Pusher:
    """A worker that subtracts 1 from every parameter with each push."""

    def __init__(self, connection: Any, path: str, layout: Layout, name: str = "w0") -> None:
        self.connection, self.path = connection, path
        status, body = call(connection, "POST", f"{path}/workers", packed({"worker": name}))
        assert status == 201, body
        opened = unpacked(body)[0]
        self.header = {
            **{key: opened[key] for key in ("worker", "epoch", "incarnation")},
            "layout": layout.hash,
        }
        self.sequence = 0
        self.payload = msgpack.packb(np.ones(layout.size, np.float32).tobytes())

    def push(self) -> None:
        header = packed({**self.header, "sequence": self.sequence})
        status, body = call(
            self.connection, "POST", f"{self.path}/gradients", header + self.payload
        )
        assert status == 200, body
        self.sequence += 1


class SlowReader:
    """Asks for the parameters and reads nothing of the answer until it is told to."""

    def __init__(self, caller: Caller, path: str, receive_buffer_bytes: int = 1 << 16) -> None:
        self.sock = caller.connect(receive_buffer_bytes)
        request = f"GET {path}/parameters HTTP/1.1\r\nHost: {caller.host}\r\nAccept: {MSGPACK}\r\n"
        self.sock.sendall(request.encode() + b"\r\n")
        # Its first bytes are here, so the server has given the whole payload to its transport.
        assert select.select([self.sock], [], [], servers.DEADLINE_S)[0], "no answer came"

    def read(self) -> tuple[int, np.ndarray]:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        answer = http.client.HTTPResponse(self.sock)
        answer.begin()
        assert answer.status == 200
        header, payload = unpacked(answer.read())
        self.sock.close()
        return header["version"], np.frombuffer(payload, np.float32)

    def leave(self) -> None:
        """Go away in the middle of the answer."""
        self.sock.close()


def assert_one_version(version: int, elements: np.ndarray) -> None:
    """Check that every element is that of the version."""
    values, counts = np.unique(elements, return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert found == {-float(version): elements.size}, f"a torn pull of version {version}"


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_pull_that_is_not_read_while_steps_run_is_one_version(
    loop, is_encrypted, tmp_path, request
):
    """The bytes of a version stay as they are until the last of them has left the process."""
    cert, key = request.getfixturevalue("certificate") if is_encrypted else (None, None)
    with servers.hosted(tmp_path, loop=loop, tls_cert=cert, tls_key=key) as server:
        caller = Caller(server.url, cert)
        path = create(caller, "large", LARGE)
        with caller.session() as connection:
            pusher = Pusher(connection, path, LARGE)
            pusher.push()
            reader = SlowReader(caller, path)

            for _ in range(STEPS):
                pusher.push()
            version, elements = reader.read()
            later, newest = SlowReader(caller, path).read()

    assert version == 1
    assert_one_version(version, elements)
    assert later == 1 + STEPS
    assert_one_version(later, newest)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_small_pull_that_is_not_read_while_steps_run_is_one_version(loop, tmp_path):
    """What is below the event loop's usual limit waits in its buffer too, and is held as long."""
    with servers.hosted(tmp_path, loop=loop) as server:
        for listener in server.sockets:
            with socket.socket(fileno=os.dup(listener.fileno())) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is
        caller = Caller(server.url)
        path = create(caller, "small", SMALL)
        with caller.session() as connection:
            pusher = Pusher(connection, path, SMALL)
            pusher.push()
            reader = SlowReader(caller, path, receive_buffer_bytes=1)

            for _ in range(STEPS):
                pusher.push()
            version, elements = reader.read()

    assert_one_version(version, elements)
    assert version == 1


def test_pulls_under_a_stream_of_pushes_show_one_version_each_and_never_an_older_one(tmp_path):
    """Many readers and two writers: no mixture, and time goes forward for each reader."""
    seen: list[list[int]] = [[] for _ in range(3)]
    failures: list[BaseException] = []
    is_done = threading.Event()

    def read(versions: list[int]) -> None:
        try:
            with caller.session() as connection:
                while not is_done.is_set():
                    status, body = call(connection, "GET", f"{path}/parameters")
                    if status == 503:  # slow readers held all; see the test below
                        continue
                    header, payload = unpacked(body)
                    versions.append(header["version"])
                    assert_one_version(versions[-1], np.frombuffer(payload, np.float32))
        except BaseException as error:
            failures.append(error)

    def write(name: str) -> None:
        try:
            with caller.session() as connection:
                pusher = Pusher(connection, path, MEDIUM, name)
                for _ in range(60):
                    pusher.push()
        except BaseException as error:
            failures.append(error)

    with servers.hosted(tmp_path) as server:
        caller = Caller(server.url)
        path = create(caller, "medium", MEDIUM)
        readers = [threading.Thread(target=read, args=(versions,)) for versions in seen]
        writers = [threading.Thread(target=write, args=(name,)) for name in ("w0", "w1")]

        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join()
        is_done.set()
        for thread in readers:
            thread.join()

    assert failures == []
    for versions in seen:
        assert versions == sorted(versions)
        assert len(set(versions)) > 1, "the reader saw no step"


def test_readers_who_read_nothing_stop_neither_steps_nor_for_ever_other_readers(tmp_path):
    """When every spare version is held a new pull is 503; when the readers leave it is answered."""
    with servers.hosted(tmp_path) as server:
        caller = Caller(server.url)
        path = create(caller, "large", LARGE)
        with caller.session() as connection:
            pusher = Pusher(connection, path, LARGE)
            readers = []
            for _ in range(3):
                readers.append(SlowReader(caller, path))
                pusher.push()

            refused, body = call(connection, "GET", f"{path}/parameters")
            pusher.push()
            for reader in readers:
                reader.leave()
            answers = iter(lambda: call(connection, "GET", f"{path}/parameters"), None)
            status, pulled = next(answer for answer in answers if answer[0] != 503)

    assert (refused, b"versions_exhausted" in body) == (503, True)
    assert status == 200
    assert_one_version(4, np.frombuffer(unpacked(pulled)[1], np.float32))


def test_a_pull_whose_reader_leaves_lets_go_of_its_version(tmp_path):
    """Readers who leave in the middle, again and again, use up nothing."""
    with servers.hosted(tmp_path) as server:
        caller = Caller(server.url)
        path = create(caller, "large", LARGE)
        with caller.session() as connection:
            pusher = Pusher(connection, path, LARGE)
            for _ in range(6):
                SlowReader(caller, path).leave()
                pusher.push()
            version, elements = SlowReader(caller, path).read()

    assert version == 6
    assert_one_version(version, elements)
