"""Gradients and parameters through memory: same results as over the wire, and nobody is harmed."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from stepwell_core.layout import Layout, Tensor
from stepwell_core.placement import place
from stepwell_server.tokens import TokenStore

from tests import servers
from tests.server import calls
from tests.server.shared_memory.neighbour import Neighbour

LAYOUT = Layout([Tensor("kernel", (64, 3), "float32"), Tensor("bias", (5,), "float64")])
SYNC = {"mode": "sync", "workers": 2}


@pytest.fixture(params=["uvloop", "asyncio"], scope="module")
def server(request, tmp_path_factory) -> Iterator[servers.ServerThread]:
    """A server on each of the two event loops."""
    with servers.hosted(tmp_path_factory.mktemp("data"), loop=request.param) as server:
        yield server


@pytest.fixture
def http(server):
    """A client that sends everything over TCP."""
    with servers.http(server.url) as http:
        yield http


@pytest.fixture
def neighbour(server) -> Iterator[Neighbour]:
    """A process on the same host."""
    neighbour = Neighbour(server.application.memory_socket)
    yield neighbour
    neighbour.close()


def arrays(region: np.ndarray, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    """Return the tensors that lie in a region, as views."""
    return layout.views(place(layout, memoryview(region)))


def fill(region: np.ndarray, value: float) -> None:
    """Write a gradient whose elements are all `value`."""
    for tensor in arrays(region).values():
        tensor[...] = value


def assert_filled(tensors: dict[str, np.ndarray], value: float) -> None:
    """Check that all elements of all tensors are `value`."""
    for tensor in tensors.values():
        np.testing.assert_array_equal(tensor, np.full_like(tensor, value))


def test_a_gradient_in_memory_has_the_effect_of_one_that_was_sent(http, neighbour):
    """The payload's way makes no difference to the step or to its result."""
    random = np.random.default_rng(0)
    gradient = {t.name: random.standard_normal(t.shape).astype(t.dtype) for t in LAYOUT.tensors}
    sent, shared = (calls.create(http, layout=LAYOUT, optimizer=calls.MOMENTUM) for _ in range(2))
    wire_worker = calls.Worker(http, sent, layout=LAYOUT)
    worker = calls.Worker(http, shared, layout=LAYOUT)
    region = neighbour.take_region(shared)

    for _ in range(3):
        for name, view in arrays(region).items():
            view[...] = gradient[name]
        answer = neighbour.push(worker)
        worker.sequence += 1
        expected = wire_worker.push(gradient)
        assert (answer.status, answer.fields) == (200, expected)

    after_wire, after_memory = (calls.pull(http, path, LAYOUT) for path in (sent, shared))
    for name in LAYOUT.names:
        np.testing.assert_array_equal(after_memory[name], after_wire[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_width_and_partial_gradients_lie_in_memory_as_they_travel(http, neighbour, dtype):
    """A region takes each payload that the wire takes."""
    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)
    region = neighbour.take_region(path)
    selection = LAYOUT.select(["kernel"])
    half = {"float16": np.float16(1.0).view(np.uint16), "bfloat16": np.uint16(0x3F80)}[dtype]

    place(selection, memoryview(region), dtype)["float32"].view(np.uint16)[...] = half
    answer = neighbour.push(worker, dtype=dtype, tensors=["kernel"])

    assert answer.fields["outcome"] == "applied"
    after = calls.pull(http, path, LAYOUT)
    assert_filled({"kernel": after["kernel"]}, 0.5)
    assert_filled({"bias": after["bias"]}, 1.0)


def test_held_parameters_do_not_change_and_later_holds_see_later_steps(http, neighbour):
    """What lies before a reader is one version, however many steps are made meanwhile."""
    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)

    first, first_region = neighbour.hold(path)
    for _ in range(4):
        worker.push(1.0)
    second, second_region = neighbour.hold(path)

    assert_filled(arrays(first_region), 1.0)
    assert_filled(arrays(second_region), -1.0)
    assert (first["version"], second["version"]) == (0, 4)
    assert first["incarnation"] == worker.incarnation
    neighbour.let_go(path, first)
    neighbour.let_go(path, first)  # twice does no harm
    neighbour.let_go(path, second)
    worker.push(1.0)
    _, third_region = neighbour.hold(path)
    assert_filled(arrays(third_region), -1.5)
    assert not third_region.flags.writeable


def test_let_go_buffers_are_used_again_and_not_sent_twice(http, neighbour):
    """A worker that trains for days maps a handful of regions."""
    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)

    for step in range(20):
        held, region = neighbour.hold(path)
        assert_filled(arrays(region), 1.0 - step / 2)
        worker.push(1.0)
        neighbour.let_go(path, held)

    assert len(neighbour.maps) <= 2


def test_what_a_lost_connection_held_is_never_written_again(http, server, neighbour):
    """A worker that is cut off while it reads goes on reading the version that it held."""
    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)
    _, region = neighbour.hold(path)

    neighbour.close()
    for _ in range(12):
        worker.push(1.0)
        calls.pull(http, path, LAYOUT)

    assert_filled(arrays(region), 1.0)
    other = Neighbour(server.application.memory_socket)
    for _ in range(3):  # nor does anything stay held
        held, region = other.hold(path)
        assert_filled(arrays(region), -5.0)
        other.let_go(path, held)
    other.close()


def test_a_region_lives_as_long_as_a_push_waits_in_it(http, server, neighbour, monkeypatch):
    """The worker's connection may end while its gradient waits for others."""
    path = calls.create(http, layout=LAYOUT, consistency=SYNC)
    pushes = server.application.registry.get(path.rpartition("/")[2]).pushes
    monkeypatch.setattr(pushes, "_wait_s", 0.1)  # until it is answered `waiting`
    first, second = (calls.Worker(http, path, name, LAYOUT) for name in ("w0", "w1"))
    fill(neighbour.take_region(path), 1.0)
    assert neighbour.push(first).fields["outcome"] == "waiting"

    neighbour.close()
    result = second.push(3.0)

    assert result["outcome"] == "applied"
    assert_filled(calls.pull(http, path, LAYOUT), 0.0)


def test_other_connections_share_nothing(http, server):
    """TCP gets no memory; a connection without a region cannot push from one."""
    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)

    over_tcp = http.post(f"{path}/memory/gradients")
    pushed = worker.send(calls.packed(worker.header(memory=True)))
    neighbour = Neighbour(server.application.memory_socket)
    without_region = neighbour.push(worker)

    calls.assert_problem(over_tcp, 409, "no_shared_memory")
    calls.assert_problem(pushed, 409, "no_shared_memory")
    assert (without_region.status, without_region.fields["code"]) == (409, "no_shared_memory")
    assert worker.push(1.0)["outcome"] == "applied"
    neighbour.close()


def test_a_payload_beside_a_gradient_in_memory_is_refused(http, neighbour):
    """A push says once where its gradient is."""
    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)
    neighbour.take_region(path)

    body = calls.packed(worker.header(memory=True), b"1234")
    answer = neighbour.ask("POST", f"{path}/gradients", body)

    assert (answer.status, answer.fields["code"]) == (422, "payload_size_mismatch")


def test_a_gradient_larger_than_its_region_is_refused(http, neighbour):
    """float64 for float32 parameters takes more room than the region has."""
    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)
    neighbour.take_region(path)

    answer = neighbour.push(worker, dtype="float64")

    assert answer.status == 422
    assert answer.fields["expected"] < answer.fields["received"]


def test_one_connection_holds_a_few_versions_at_most(http, neighbour):
    """A worker that forgets to let go is told so."""
    path = calls.create(http, layout=LAYOUT)
    for _ in range(4):
        neighbour.hold(path)

    answer = neighbour.ask("POST", f"{path}/memory/parameters")

    assert (answer.status, answer.fields["code"]) == (409, "conflict")


def test_nobody_can_shrink_a_region_or_write_into_parameters(http, neighbour):
    """The seals keep one process from killing another with SIGBUS, or from changing a model."""
    path = calls.create(http, layout=LAYOUT)
    gradients = neighbour.ask("POST", f"{path}/memory/gradients").descriptor
    parameters = neighbour.ask("POST", f"{path}/memory/parameters").descriptor

    for descriptor in (gradients, parameters):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 1 << 20)
    with pytest.raises(PermissionError):
        os.pwrite(parameters, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(parameters, 64)
    for descriptor in (gradients, parameters):
        os.close(descriptor)


WRITER = """
import os, sys
sys.path.insert(0, {root!r})
from tests.server.shared_memory.neighbour import Neighbour
region = Neighbour({path!r}).take_region({model!r})
print("writing", flush=True)
while True:
    region[:] = 0xFF
"""


def test_a_worker_that_dies_while_writing_harms_nobody(http, server):
    """Half a gradient in a region is nobody's gradient."""
    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)
    root = str(Path(__file__).resolve().parents[3])
    program = WRITER.format(root=root, path=server.application.memory_socket, model=path)
    writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"

    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    worker.push(1.0)

    assert_filled(calls.pull(http, path, LAYOUT), 0.5)


def test_the_socket_is_for_this_user_alone(server):
    """Others cannot even connect."""
    path = Path(server.application.memory_socket)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_server_says_where_its_socket_is(http, server):
    """A client asks for it before it tries."""
    assert http.get("/v1").json()["memory_socket"] == server.application.memory_socket


def test_a_token_is_needed_over_the_unix_socket_too(tmp_path):
    """Who shares the host does not share the rights."""
    tokens = TokenStore(tmp_path)
    reader, admin = tokens.create("read"), tokens.create("admin")
    with servers.hosted(tmp_path) as server, servers.http(server.url, admin) as http:
        path = calls.create(http, layout=LAYOUT)
        stranger, neighbour = (
            Neighbour(server.application.memory_socket, token) for token in (None, reader)
        )

        asked = [
            stranger.ask("POST", f"{path}/memory/parameters").status,
            neighbour.ask("POST", f"{path}/memory/parameters").status,
            neighbour.ask("POST", f"{path}/memory/gradients").status,
        ]

        assert asked == [401, 201, 403]
        stranger.close()
        neighbour.close()


def test_sharing_can_be_switched_off(tmp_path):
    """Then there is no socket, and the server's own Unix socket shares nothing."""
    with servers.hosted(tmp_path / "a", shared_memory=False) as server:
        assert server.application.memory_socket is None
        assert not (tmp_path / "a" / "stepwell.sock").exists()
    uds = tmp_path / "uds"
    with servers.hosted(tmp_path / "b", shared_memory=False, uds=uds):
        neighbour = Neighbour(str(uds))
        body = b'{"name": "m"}'
        neighbour.ask("POST", "/v1/models", body, "application/json")

        answer = neighbour.ask("POST", "/v1/models/m/memory/gradients")

        assert answer.status in (404, 409)
        neighbour.close()


def test_the_socket_goes_with_the_server_and_one_left_behind_is_replaced(tmp_path):
    """A crash leaves a file there that nobody listens at."""
    with servers.served(tmp_path) as server:
        server.kill()
    assert (tmp_path / "stepwell.sock").is_socket()

    with servers.served(tmp_path) as server:
        neighbour = Neighbour(str(tmp_path / "stepwell.sock"))
        assert neighbour.ask("GET", "/healthz").status == 200
        neighbour.close()

    assert not (tmp_path / "stepwell.sock").exists()


def test_a_path_too_long_for_a_socket_address_is_no_hindrance(tmp_path):
    """Data folders lie deep."""
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)

    with servers.hosted(deep) as server:
        assert Path(server.application.memory_socket).is_socket()


def test_the_socket_says_whose_it_is_without_a_token(tmp_path):
    """So nobody says a token to a stranger; over TCP the name is for those who have one."""
    token = TokenStore(tmp_path).create("read")
    with servers.hosted(tmp_path) as server, servers.http(server.url, token) as http:
        neighbour = Neighbour(server.application.memory_socket)

        told = neighbour.ask("GET", "/healthz").fields

        assert told == {"status": "ok", "instance": http.get("/v1").json()["instance"]}
        assert http.get("/healthz").json() == {"status": "ok"}
        neighbour.close()


def test_a_version_of_a_deleted_model_is_let_go_of(http, neighbour):
    """Its memory does not stay for as long as the worker lives."""
    path = calls.create(http, layout=LAYOUT)
    held, region = neighbour.hold(path)

    http.delete(path)

    assert_filled(arrays(region), 1.0)
    neighbour.let_go(path, held)


def test_a_stop_leaves_the_socket_of_another_server_alone(tmp_path):
    """Two servers were told the same path, and the second one has replaced the first one's name."""
    path = tmp_path / "socket"
    with servers.hosted(tmp_path / "a", memory_socket=path):
        path.unlink()
        with servers.hosted(tmp_path / "b", memory_socket=path) as second:
            assert second.application.memory_socket == str(path)
            before = path.stat().st_ino
            with servers.hosted(tmp_path / "c", memory_socket=path) as third:
                assert third.application.memory_socket is None  # it is in use
            assert path.stat().st_ino == before
            path.rename(tmp_path / "kept")
            path.touch()
        assert path.exists()


def test_no_memory_is_shared_inside_of_tls(tmp_path, certificate):
    """Descriptors cannot travel there, so nobody is sent to look for them."""
    cert, key = certificate
    uds = tmp_path / "uds"
    with servers.hosted(tmp_path, uds=uds, tls_cert=cert, tls_key=key) as server:
        assert server.application.memory_socket is None


def test_without_memory_to_share_parameters_stay_where_they_are(http, neighbour, monkeypatch):
    """The pull is refused, so it goes over the wire; later it may be shared."""

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = calls.create(http, layout=LAYOUT)
    worker = calls.Worker(http, path, layout=LAYOUT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail)
        refused = [
            neighbour.ask("POST", f"{path}/memory/{what}") for what in ("gradients", "parameters")
        ]
    worker.push(1.0)

    assert [answer.fields["code"] for answer in refused] == ["no_shared_memory"] * 2
    assert_filled(calls.pull(http, path, LAYOUT), 0.5)
    _, region = neighbour.hold(path)
    assert_filled(arrays(region), 0.5)


def test_regions_for_gradients_take_half_of_the_staging_at_most(tmp_path):
    """Those that do not fit are refused at once; what is let go of makes room again."""
    layout = Layout([Tensor("w", (1 << 18,), "float32")])
    with (
        servers.hosted(tmp_path, staging_bytes=4 << 20) as server,
        servers.http(server.url) as http,
    ):
        path = calls.create(http, layout=layout)
        staging = server.application.staging
        neighbours = [Neighbour(server.application.memory_socket) for _ in range(3)]
        asked = [n.ask("POST", f"{path}/memory/gradients").status for n in neighbours]
        used = staging.used_bytes
        again = neighbours[0].ask("POST", f"{path}/memory/gradients").status
        for neighbour in neighbours:
            neighbour.close()
        while staging.used_bytes:  # until the server has seen the ends of the three
            http.get("/healthz")

        assert (asked, used, again) == ([201, 201, 409], 2 << 20, 201)
