"""Tests of `stepwell.memory_connection`: answers, and descriptors that come along with them."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import threading

import pytest
from stepwell.endpoint import Endpoint
from stepwell.errors import ModelNotFound, UnexpectedAnswer
from stepwell.memory_connection import MAX_ANSWER_BYTES, MemoryConnection
from stepwell_core.errors import NoSharedMemory

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
HELLO = b'{"status": "ok", "instance": "mine"}'


def answer(body=b"{}", status=200, more=b""):
    """Return one answer."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), more, body)


@pytest.fixture
def memfds():
    """Return what makes files of memory, which are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def new(nbytes=64, seals=SEALS):
            descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
            stack.callback(os.close, descriptor)
            os.write(descriptor, b"x" * nbytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return descriptor

        yield new


@pytest.fixture
def connect(tmp_path):
    """Return what connects to a server that gives the answers it was told, with descriptors."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.settimeout(30)
        heard = []

        def serve(answers):
            wire, _ = listener.accept()
            with wire:
                for content, *descriptors in answers:
                    heard.append(wire.recv(65536))
                    for descriptor in descriptors:
                        socket.send_fds(wire, [INTERIM], [descriptor])
                    wire.sendall(content)
                heard.append(wire.recv(65536))

        def new(*answers, instance="mine", hello=HELLO):
            thread = threading.Thread(target=serve, args=([(answer(hello),), *answers],))
            thread.start()
            stack.callback(thread.join)
            endpoint = Endpoint("http://localhost", "sw_secret")
            connection = MemoryConnection(endpoint, str(tmp_path / "socket"), instance)
            stack.callback(connection.close)
            return connection, heard

        yield new


def test_the_token_is_for_the_right_server_alone(connect):
    """It is said once the server has named itself."""
    connection, heard = connect((answer(b'{"bytes": 3}'),))

    assert connection.ask("POST", "/v1/models/m/memory/gradients") == {"bytes": 3}

    assert b"secret" not in heard[0]
    assert b"Authorization: Bearer sw_secret\r\n" in heard[1]


@pytest.mark.parametrize("hello", [b"{}", b'{"instance": "other"}'])
def test_another_server_is_refused(connect, hello):
    """Or one that does not say who it is."""
    with pytest.raises(NoSharedMemory, match="Another server"):
        connect(hello=hello)


def test_a_region_is_mapped_once_and_no_descriptor_stays(connect, memfds):
    """One that came twice, or with an answer that nobody wanted it for, is closed."""
    first, second = memfds(), memfds()
    connection, _ = connect((answer(), first, second), (answer(), first), (answer(),))
    before = len(os.listdir("/proc/self/fd"))

    connection.ask("POST", "/")
    region = connection.take_region(64, is_writable=True)
    connection.ask("POST", "/")
    connection.ask("POST", "/")
    region[0] = 65

    assert os.pread(second, 1, 0) == b"A"
    with pytest.raises(NoSharedMemory, match="No memory came"):
        connection.take_region(64, is_writable=True)
    del region
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_that_can_be_taken_away_is_refused(connect, memfds):
    """A missing seal, or fewer bytes than were said."""
    for seals, nbytes in ((fcntl.F_SEAL_SHRINK, 64), (0, 64), (SEALS, 65)):
        connection, _ = connect((answer(), memfds(seals=seals)))
        connection.ask("POST", "/")
        with pytest.raises(NoSharedMemory, match="take away"):
            connection.take_region(nbytes, is_writable=False)
        connection.close()


def test_memory_that_cannot_be_mapped_is_refused(connect, memfds, monkeypatch):
    """There is the wire for that."""

    def fail(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    connection, _ = connect((answer(), memfds()))
    connection.ask("POST", "/")
    monkeypatch.setattr(mmap, "mmap", fail)

    with pytest.raises(NoSharedMemory, match="Cannot allocate"):
        connection.take_region(64, is_writable=False)


def test_answers_nobody_waits_for_are_read_before_the_next(connect):
    """And whatever they say is of no interest."""
    gone = answer(b'{"code": "model_not_found"}', 404)
    connection, heard = connect((gone + answer(b'{"bytes": 3}'),))

    connection.tell("DELETE", "/1")

    assert connection.ask("GET", "/") == {"bytes": 3}
    assert connection.is_usable
    assert heard[1].startswith(b"DELETE /1 ")


def test_a_refusal_leaves_the_connection_usable_and_an_end_does_not(connect):
    """A connection that the server ends is made anew, but its last answer counts."""
    refusal = answer(b'{"code": "model_not_found"}', 404)
    connection, _ = connect((refusal,), (answer(b'{"a": 1}', more=b"Connection: close\r\n"),))

    with pytest.raises(ModelNotFound):
        connection.ask("GET", "/")
    assert connection.is_usable
    assert connection.ask("GET", "/") == {"a": 1}
    assert not connection.is_usable


@pytest.mark.parametrize("body", [b"[]", b"{", b"{}" + b" " * MAX_ANSWER_BYTES], ids=len)
def test_what_is_no_answer_is_refused(connect, body):
    """No object, no JSON, or no end."""
    connection, _ = connect((answer(body),))

    with pytest.raises(UnexpectedAnswer):
        connection.ask("GET", "/")


def test_a_process_of_another_user_is_not_spoken_to(tmp_path, monkeypatch):
    """It would be given the token."""

    class Stranger:
        size = 12

        def unpack(self, packed):
            return (1, os.geteuid() + 4242, 0)

    monkeypatch.setattr("stepwell.memory_connection._CREDENTIALS", Stranger())

    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        with pytest.raises(NoSharedMemory, match="Another user's process"):
            MemoryConnection(Endpoint("http://localhost", "sw_secret"), path, "mine")
