"""Tests of `stepwell.transport` against real sockets that misbehave; each for both clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess

import httpx
import numpy as np
import pytest
import stepwell
from stepwell.calls import Answer, Call
from stepwell.endpoint import Endpoint
from stepwell.errors import (
    CertificateRefused,
    ConnectionFailed,
    Fenced,
    LayoutMismatch,
    ModelNotFound,
    TimedOut,
    UnexpectedAnswer,
)
from stepwell.transport import HttpTransport
from stepwell_core.layout import Layout

from tests.client.flow_driver import opened, result
from tests.client.misbehaving import (
    Misbehaving,
    answers,
    closed_port,
    message,
    problem,
    resets,
    response,
    says,
    stays_silent,
)
from tests.servers import served

LAYOUT = Layout.of({"w": np.zeros(3, np.float32)})
GRADIENT = {"w": np.ones(3, np.float32)}
DESCRIBED = {"name": "m", "tensors": LAYOUT.to_json()}
PULLED = {"version": 0, "incarnation": "one", "layout": LAYOUT.hash, "tensors": None}
HASTY = stepwell.Timeout(connect_s=2, read_s=0.2, retry_s=0.3)
FOUND, OPENED, PUSHED = (
    answers(response(message(fields))) for fields in (DESCRIBED, opened(), result())
)
WEIGHTS = np.float32([1, 2, 3])


@contextlib.contextmanager
def talking_to(clients, *acts, **options):
    """Give a server with these acts, and a client that talks to it."""
    with Misbehaving(*acts) as server, clients.client(server.url, **options) as client:
        yield server, client


# Answers that cannot be read


def test_a_pull_is_read_into_arrays(clients):
    """First the good case, so that the bad ones mean something."""
    pulled = answers(response(message(PULLED, WEIGHTS)))

    with talking_to(clients, FOUND, pulled) as (server, client):
        parameters = client.model("m").pull()

    assert parameters["w"].tolist() == [1, 2, 3]
    assert parameters["w"].flags.writeable
    assert server.requests[1].headers["accept"] == "application/msgpack"
    assert server.requests[1].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "body",
    [
        message(PULLED),
        message(PULLED, WEIGHTS[:2]),
        message(PULLED, WEIGHTS, WEIGHTS),
        message(PULLED, WEIGHTS)[:-1],
        message(PULLED)[:5],
        b"",
        b"\xc1garbage",
        b"[1, 2, 3]",
        message({**PULLED, "tensors": ["x"]}, WEIGHTS),
        message({**PULLED, "tensors": [["w"]]}, WEIGHTS),
        message({**PULLED, "tensors": 3}, WEIGHTS),
        message({"layout": LAYOUT.hash}, WEIGHTS),
        message({"hello": "world"}),
    ],
    ids=[
        "no payload", "short", "long", "cut", "cut header", "empty", "garbage", "list",
        "unknown tensor", "no name", "no names", "no version", "another service",
    ],
)  # fmt: skip
def test_an_answer_that_is_no_message_of_the_protocol_is_unexpected(clients, body):
    """It is told at once, as a fault of the answer and not of what was sent."""
    with talking_to(clients, FOUND, answers(response(body))) as (server, client):
        model = client.model("m")
        with pytest.raises(UnexpectedAnswer):
            model.pull()

    assert len(server.requests) == 2


def test_an_answer_of_another_layout_says_that_the_model_is_another_one(clients):
    """It was deleted and created anew; `model()` opens it again."""
    other = Layout.of({"w": np.zeros(4, np.float32)})
    pulled = message({**PULLED, "layout": other.hash}, np.zeros(4, np.float32))

    with talking_to(clients, FOUND, answers(response(pulled))) as (_, client):
        model = client.model("m")
        with pytest.raises(LayoutMismatch, match="Open it again"):
            model.pull()


@pytest.mark.parametrize(
    "data",
    [
        response(b"<html>It works!</html>", 200, "text/html"),
        response(b"<html>Nope</html>", 404, "text/html"),
        response(b'{"message": "no Route matched"}', 404, "application/json"),
        response(b'["a"]', 200, "application/json"),
        response(b"[" * 100_000, 200, "application/json"),
        response(b"", 307, "text/plain"),
        response(b"\xff" * 100, 200, "application/json"),
        response(message({"code": "fenced"}), 409),
        response(b"x" * (17 << 20), 200, "text/plain"),
    ],
    ids=[
        "page", "404 page", "gateway's JSON", "list", "deep", "redirect", "bytes", "msgpack error",
        "endless",
    ],
)  # fmt: skip
def test_what_is_no_stepwell_server_is_told_so_at_once(clients, data):
    """The sentence asks about the URL and a proxy; nobody waits a minute."""
    with (
        talking_to(clients, says(data)) as (server, client),
        pytest.raises(UnexpectedAnswer, match="is the URL right"),
    ):
        client.models()

    assert len(server.requests) == 1


def test_a_proxy_that_answers_for_a_server_that_restarts_is_asked_again(clients):
    """An HTML 502 is what nginx says for some seconds; the call goes through after it."""
    page = says(response(b"<html>502 Bad Gateway</html>", 502, "text/html"))
    listed = answers(response(message({"models": [{"name": "m"}]})))

    with talking_to(clients, page, page, listed) as (server, client):
        assert client.models() == ["m"]

    assert len(server.requests) == 3


def test_a_proxy_that_says_502_for_ever_is_told(clients):
    """The status is in the sentence."""
    page = says(response(b"<html>502 Bad Gateway</html>", 502, "text/html"))

    with (
        talking_to(clients, page, timeout=HASTY) as (server, client),
        pytest.raises(ConnectionFailed, match="Something in between answered 502"),
    ):
        client.models()

    assert len(server.requests) > 1


def test_a_problem_document_is_raised_as_its_class(clients):
    """With the code's class, the server's sentence and the details."""
    with (
        talking_to(clients, answers(problem("model_not_found", 404, model="m"))) as (_, client),
        pytest.raises(ModelNotFound, match=r"Why\.") as caught,
    ):
        client.model("m")

    assert caught.value.details["model"] == "m"
    assert caught.value.details["status"] == 404


# Answers that do not come


@pytest.mark.parametrize(
    "act",
    [
        says(b""),
        says(b"HTTP/1.1 200 OK\r\nContent-Le"),
        says(response(message(PULLED, WEIGHTS))[:-6]),
        says(b"SSH-2.0-OpenSSH_9.2\r\n"),
        resets,
    ],
    ids=["closes", "closes in the head", "closes in the body", "is no HTTP", "resets"],
)
def test_a_connection_that_breaks_is_made_again(clients, act):
    """The same call goes through on the next connection."""
    pulled = answers(response(message(PULLED, WEIGHTS)))

    with talking_to(clients, FOUND, act, act, pulled) as (server, client):
        parameters = client.model("m").pull()

    assert parameters["w"].tolist() == [1, 2, 3]
    assert len(server.requests) == 4


def test_a_server_that_never_answers_is_told(clients):
    """After `read_s` the call is made again, until `retry_s`."""
    with talking_to(clients, FOUND, stays_silent, timeout=HASTY) as (server, client):
        model = client.model("m")
        with pytest.raises(TimedOut, match="did not answer in time") as caught:
            model.pull()

    assert caught.value.was_sent
    assert len(server.requests) == 3


def test_a_server_that_is_not_there_is_told(clients):
    """The sentence says how to start one; nothing was sent."""
    hasty = stepwell.Timeout(connect_s=0.2)

    with (
        closed_port() as url,
        clients.client(url, timeout=hasty) as client,
        pytest.raises(ConnectionFailed, match="`stepwell serve`") as caught,
    ):
        client.models()

    assert not caught.value.was_sent
    assert url in caught.value.message


# Pushes whose answer is lost


@pytest.mark.parametrize(
    "act",
    [resets, says(response(message(result()))[:-3]), stays_silent],
    ids=["reset", "cut", "silence"],
)
def test_a_push_whose_answer_is_lost_is_sent_again_with_the_same_sequence(clients, act):
    """Byte for byte the same request, so that the server can know it again."""
    patient = stepwell.Timeout(connect_s=30, read_s=0.3, retry_s=30)

    with talking_to(clients, FOUND, OPENED, act, PUSHED, timeout=patient) as (server, client):
        worker = client.model("m").worker("w0")
        found = worker.push(GRADIENT)

    first, second = server.requests[2:]
    assert found.outcome == "applied"
    assert first.message["sequence"] == second.message["sequence"] == 0
    assert first.body == second.body


def test_a_push_that_was_refused_after_a_reset_asks_before_the_next(clients):
    """401 on the second attempt does not mean that the first had no effect."""
    acts = [FOUND, OPENED, resets, answers(problem("unauthenticated", 401)), PUSHED]

    with talking_to(clients, *acts) as (server, client):
        worker = client.model("m").worker("w0")
        with pytest.raises(stepwell.errors.Unauthenticated):
            worker.push(GRADIENT)
        worker.push(GRADIENT)

    asked, pushed = server.requests[4:]
    assert asked.path == "/v1/models/m/workers/w0/pushes/0?epoch=1&wait_s=20.0"
    assert pushed.message["sequence"] == 1


def test_a_large_push_that_is_refused_early_gets_the_refusal(clients):
    """The server answers after the head and closes; the client hears why instead of an error."""
    layout = Layout.of({"w": np.zeros(1 << 20, np.float32)})
    found = answers(response(message({**DESCRIBED, "tensors": layout.to_json()})))
    refused = says(problem("fenced", 409))

    with talking_to(clients, found, OPENED, refused) as (server, client):
        worker = client.model("m").worker("w0")
        with pytest.raises(Fenced):
            worker.push({"w": np.ones(1 << 20, np.float32)})

    assert server.requests[2].headers["content-length"] == str(len(server.requests[2].body))
    assert "transfer-encoding" not in server.requests[2].headers


# Leaving


def test_leaving_closes_the_session_once(clients):
    """The server can stop waiting for this worker."""
    acts = [FOUND, OPENED, answers(response(b"", 204))]

    with talking_to(clients, *acts) as (server, client):
        with client.model("m").worker("w0") as worker:
            pass
        worker.close()

    assert [f"{request.method} {request.path}" for request in server.requests[2:]] == [
        "DELETE /v1/models/m/workers/w0?epoch=1"
    ]


@pytest.mark.parametrize(
    "act", [stays_silent, resets, says(b"garbage"), answers(problem("internal_error", 500))]
)
def test_leaving_never_masks_an_exception_and_takes_a_second_at_most(clients, act, monkeypatch):
    """Whatever the server does at the end, the user's own error comes through."""
    monkeypatch.setattr("stepwell.session.CLOSE_S", 0.2)

    with (
        talking_to(clients, FOUND, OPENED, act) as (server, client),
        pytest.raises(ZeroDivisionError),
        client.model("m").worker("w0"),
    ):
        1 / 0  # noqa: B018

    assert len(server.requests) == 3


def test_closing_is_given_one_second_in_all():
    """Half of it to connect, half to be answered."""
    from stepwell.session import CLOSE_S
    from stepwell.transport import _options

    timeout = _options(Call("DELETE", "/", timeout_s=CLOSE_S), iter)["timeout"]

    assert timeout.connect + timeout.read <= 1.0


def test_leaving_after_the_client_was_closed_is_no_error(clients):
    """The order in which blocks end is the user's business."""
    with (
        talking_to(clients, FOUND, OPENED) as (_, client),
        client.model("m").worker("w0"),
    ):
        client.close()


# Interruptions


def test_ctrl_c_in_the_middle_of_a_push_leaves_it_unresolved(monkeypatch):
    """The next push first asks what became of it."""
    with Misbehaving(FOUND, OPENED, PUSHED) as server, stepwell.Client(server.url) as client:
        worker = client.model("m").worker("w0").open()
        with monkeypatch.context() as patched:
            patched.setattr(httpx.Response, "iter_raw", interrupted)
            with pytest.raises(KeyboardInterrupt):
                worker.push(GRADIENT)

        worker.push(GRADIENT)

    asked, pushed = server.requests[3:]
    assert asked.path.startswith("/v1/models/m/workers/w0/pushes/0")
    assert pushed.message["sequence"] == 1


def interrupted(response):
    """Stand for the moment in which Ctrl-C comes."""
    raise KeyboardInterrupt


def test_a_cancelled_push_is_unresolved():
    """A task that is cancelled leaves the worker usable, and nothing is lost or doubled."""

    async def cancel_and_go_on(server):
        async with stepwell.AsyncClient(server.url) as client:
            worker = await (await client.model("m")).worker("w0").open()
            task = asyncio.create_task(worker.push(GRADIENT))
            async with asyncio.timeout(30):
                while len(server.requests) < 3:
                    await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await worker.push(GRADIENT)

    with Misbehaving(FOUND, OPENED, stays_silent, PUSHED) as server:
        asyncio.run(cancel_and_go_on(server))

    asked, pushed = server.requests[3:]
    assert asked.path.startswith("/v1/models/m/workers/w0/pushes/0")
    assert pushed.message["sequence"] == 1


# Processes


def test_a_forked_process_makes_connections_of_its_own():
    """It would read its parent's answers otherwise, and the parent the child's."""
    listed = answers(response(message({"models": [{"name": "m"}]})))
    with Misbehaving(listed) as server, stepwell.Client(server.url) as client:
        client.models()
        parents = ports(client)

        pid = os.fork()
        if pid == 0:  # no assertions here: the child must not go on as a test
            is_right = client.models() == ["m"] and not ports(client) & parents
            os._exit(0 if is_right else 1)
        _, status = os.waitpid(pid, 0)

        assert client.models() == ["m"]
        assert ports(client) == parents
    assert os.waitstatus_to_exitcode(status) == 0


def ports(client):
    """Return the local ports of a client's connections."""
    pool = client._transport._clients.get()._transport._pool
    return {
        connection._connection._network_stream.get_extra_info("client_addr")[1]
        for connection in pool.connections
    }


# TLS and Unix sockets, with the real server


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the paths of a certificate for 127.0.0.1 that nobody trusts, and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=stepwell", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(
            [*command, "-keyout", str(key), "-out", str(certificate)],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    return certificate, key


@pytest.fixture(scope="module")
def tls_server(certificate, tmp_path_factory):
    """Return a server that speaks TLS."""
    flags = ["--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1])]
    with served(tmp_path_factory.mktemp("data"), *flags) as server:
        yield server


def test_a_certificate_that_is_not_trusted_is_refused_at_once(clients, tls_server):
    """The sentence says how to trust one's own; it is no connection that failed."""
    with (
        clients.client(tls_server.url) as client,
        pytest.raises(CertificateRefused, match=r"verify=ssl.create_default_context") as caught,
    ):
        client.models()

    assert not caught.value.was_sent


def test_a_certificate_of_ones_own_can_be_trusted(clients, tls_server, certificate):
    """`verify` takes an SSL context, or False for a trial."""
    context = ssl.create_default_context(cafile=str(certificate[0]))

    for verify in (context, False):
        with clients.client(tls_server.url, verify=verify) as client:
            assert client.models() == []


def test_a_unix_socket_is_used_instead_of_tcp(clients, tmp_path):
    """Neither port nor address are looked at."""
    path = tmp_path / "s"
    with served(tmp_path / "data", "--uds", str(path)):
        for given in (path, str(path)):
            with clients.client(uds=given) as client:
                assert client.models() == []


# Memory


def test_a_body_is_sent_in_pieces_that_are_views():
    """No piece is a copy of the caller's array."""
    from stepwell.transport import PIECE_BYTES, _pieces

    array = np.zeros(1 << 20, np.uint8)

    pieces = list(_pieces((b"head", memoryview(array))))

    assert pieces[0] == b"head"
    assert [len(piece) for piece in pieces[1:]] == [PIECE_BYTES] * 4
    assert all(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in pieces[1:])


def test_json_bodies_say_so():
    """Small calls are JSON."""
    seen = []

    def act(connection):
        connection.send(response(message({"ok": True})))

    with Misbehaving(act) as server:
        transport = HttpTransport(Endpoint(server.url))
        answer = transport.send(Call("PATCH", "/v1/x", json={"a": 1}))
        transport.close()
        seen += server.requests

    assert answer == Answer({"ok": True})
    assert seen[0].headers["content-type"] == "application/json"
    assert json.loads(seen[0].body) == {"a": 1}
