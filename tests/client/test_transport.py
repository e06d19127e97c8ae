"""Tests of `stepwell.transport` against real sockets that misbehave; each over every transport."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import parse_qs

import httpx
import numpy as np
import pytest
import stepwell
from stepwell.calls import Answer, Call
from stepwell.connection import Connection
from stepwell.endpoint import KEEP_ALIVE_S, Endpoint
from stepwell.errors import (
    CertificateRefused,
    ClientClosed,
    ConnectionFailed,
    Fenced,
    LayoutMismatch,
    ModelNotFound,
    TimedOut,
    UnexpectedAnswer,
)
from stepwell.http_response import Response
from stepwell.transport import DirectTransport, HttpxTransport, new_transport
from stepwell.transport.direct import Pool
from stepwell_core.layout import Layout

from tests.client.adapter import AsyncClients, BlockingClients, HttpxClients
from tests.client.flow_driver import opened, result
from tests.client.forward_proxy import ForwardProxy
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
LISTED = answers(response(message({"models": [{"name": "m"}]})))


WAYS = {
    "tcp": BlockingClients,
    "tls": BlockingClients,
    "uds": BlockingClients,
    "httpx": HttpxClients,
    "asyncio": AsyncClients,
}


@pytest.fixture(params=WAYS)
def way(request, tmp_path):
    """Return how clients and servers talk: which transport, over what."""
    clients = WAYS[request.param]()
    found = Way(clients, *_over(request, tmp_path))
    yield found
    clients.close()


def _over(request, tmp_path):
    """Return the options of a server and of its clients."""
    if request.param == "uds":
        return {"uds": str(tmp_path / "s")}, {"uds": tmp_path / "s"}
    if request.param != "tls":
        return {}, {}
    certificate, key = request.getfixturevalue("certificate")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    return {"tls": tls}, {"verify": ssl.create_default_context(cafile=str(certificate))}


@dataclass
class Way:
    """How clients and servers talk."""

    clients: BlockingClients | AsyncClients
    of_server: dict[str, object]
    of_client: dict[str, object]

    @contextlib.contextmanager
    def talking_to(self, *acts, **options):
        """Give a server with these acts, and a client that talks to it over the wire alone."""
        options = {"transport": "http", **self.of_client, **options}
        with (
            Misbehaving(*acts, **self.of_server) as server,
            self.clients.client(server.url, **options) as client,
        ):
            yield server, client


# Answers that cannot be read


def test_a_pull_is_read_into_arrays(way):
    """First the good case, so that the bad ones mean something."""
    pulled = answers(response(message(PULLED, WEIGHTS)))

    with way.talking_to(FOUND, pulled) as (server, client):
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
def test_an_answer_that_is_no_message_of_the_protocol_is_unexpected(way, body):
    """It is told at once, as a fault of the answer and not of what was sent."""
    with way.talking_to(FOUND, answers(response(body))) as (server, client):
        model = client.model("m")
        with pytest.raises(UnexpectedAnswer):
            model.pull()

    assert len(server.requests) == 2


def test_an_answer_of_another_layout_says_that_the_model_is_another_one(way):
    """It was deleted and created anew; `model()` opens it again."""
    other = Layout.of({"w": np.zeros(4, np.float32)})
    pulled = message({**PULLED, "layout": other.hash}, np.zeros(4, np.float32))

    with way.talking_to(FOUND, answers(response(pulled))) as (_, client):
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
def test_what_is_no_stepwell_server_is_told_so_at_once(way, data):
    """The sentence asks about the URL and a proxy; nobody waits a minute."""
    with (
        way.talking_to(says(data)) as (server, client),
        pytest.raises(UnexpectedAnswer, match="is the URL right"),
    ):
        client.models()

    assert len(server.requests) == 1


def test_a_proxy_that_answers_for_a_server_that_restarts_is_asked_again(way):
    """An HTML 502 is what nginx says for some seconds; the call goes through after it."""
    page = says(response(b"<html>502 Bad Gateway</html>", 502, "text/html"))
    listed = answers(response(message({"models": [{"name": "m"}]})))

    with way.talking_to(page, page, listed) as (server, client):
        assert client.models() == ["m"]

    assert len(server.requests) == 3


def test_a_proxy_that_says_502_for_ever_is_told(way):
    """The status is in the sentence."""
    page = says(response(b"<html>502 Bad Gateway</html>", 502, "text/html"))

    with (
        way.talking_to(page, timeout=HASTY) as (server, client),
        pytest.raises(ConnectionFailed, match="Something in between answered 502"),
    ):
        client.models()

    assert len(server.requests) > 1


def test_a_problem_document_is_raised_as_its_class(way):
    """With the code's class, the server's sentence and the details."""
    with (
        way.talking_to(answers(problem("model_not_found", 404, model="m"))) as (_, client),
        pytest.raises(ModelNotFound, match=r"Why\.") as caught,
    ):
        client.model("m")

    assert caught.value.details["model"] == "m"
    assert caught.value.details["status"] == 404


# Where a payload goes


def test_a_payload_goes_into_the_callers_arrays(way):
    """They are what the pull returns."""
    out = {"w": np.zeros(3, np.float32)}

    with way.talking_to(FOUND, answers(response(message(PULLED, WEIGHTS)))) as (_, client):
        parameters = client.model("m").pull(out=out)

    assert parameters["w"] is out["w"]
    assert out["w"].tolist() == [1, 2, 3]


LARGE = np.arange(9 << 20, dtype=np.float32)
LARGE_LAYOUT = Layout.of({"w": LARGE})
LARGE_FOUND = answers(response(message({"name": "m", "tensors": LARGE_LAYOUT.to_json()})))
LARGE_PULLED = message({**PULLED, "layout": LARGE_LAYOUT.hash}, LARGE)


def test_a_large_payload_goes_into_a_callback_piece_by_piece(way):
    """In order, whatever the transport's own pieces are, and then there is nothing else."""
    seen = []

    def into(name, index, elements):
        seen.append((name, index, elements.size))
        assert np.array_equal(elements, LARGE[index : index + elements.size])

    with way.talking_to(LARGE_FOUND, answers(response(LARGE_PULLED))) as (_, client):
        parameters = client.model("m").pull(into=into)

    step = (16 << 20) // 4
    assert seen == [("w", 0, step), ("w", step, step), ("w", 2 * step, 1 << 20)]
    assert (len(parameters), parameters.version, parameters.incarnation) == (0, 0, "one")


def test_a_callback_that_has_had_a_piece_is_not_called_again_for_another_answer(way):
    """The connection breaks in the middle: the pull raises and is not tried again."""
    seen = []
    cut = says(response(LARGE_PULLED)[:-5])

    with way.talking_to(LARGE_FOUND, cut, LARGE_FOUND) as (server, client):
        model = client.model("m")
        with pytest.raises(ConnectionFailed, match="broke"):
            model.pull(into=lambda name, index, elements: seen.append(index))

    assert seen == [0, 4 << 20]
    assert len(server.requests) == 2


def test_a_callback_is_called_by_the_second_attempt_if_the_first_gave_nothing(way):
    """Then it has seen nothing, so the pull may be tried again as any other."""
    seen = []
    acts = [resets, says(response(LARGE_PULLED)[:1000]), answers(response(LARGE_PULLED))]

    with way.talking_to(LARGE_FOUND, *acts) as (server, client):
        client.model("m").pull(into=lambda name, index, elements: seen.append(index))

    assert seen == [0, 4 << 20, 8 << 20]
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "error",
    [OSError("disk full"), httpx.ReadError("x"), Fenced("x"), ConnectionFailed("x"), KeyError("x")],
    ids=lambda error: type(error).__name__,
)
def test_what_a_callback_raises_is_the_callers_own(way, error):
    """It ends the pull and comes through as it is, and is no reason to try again."""

    def into(name, index, elements):
        raise error

    acts = [FOUND, answers(response(message(PULLED, WEIGHTS))), LISTED]
    with way.talking_to(*acts) as (server, client):
        model = client.model("m")
        with pytest.raises(type(error)) as caught:
            model.pull(into=into)
        assert client.models() == ["m"]  # and the client goes on

    assert caught.value is error
    assert len(server.requests) == 3


def test_what_is_current_does_not_come_again(way):
    """304 without a body: the very same object, and the connection is as good as before."""
    pulled = response(message(PULLED, WEIGHTS)).replace(b"\r\n", b'\r\nETag: "one:0:x"\r\n', 1)
    current = b'HTTP/1.1 304 Not Modified\r\nETag: "one:0:x"\r\n\r\n'

    with way.talking_to(FOUND, answers(pulled), answers(current), LISTED) as (server, client):
        model = client.model("m")
        first = model.pull()
        second = model.pull(cached=first)
        client.models()

    assert second is first
    assert "if-none-match" not in server.requests[1].headers
    assert server.requests[2].headers["if-none-match"] == '"one:0:x"'


def test_304_that_nobody_asked_for_is_unexpected(way):
    """A cache in between answers for the server; there are no parameters to return."""
    current = answers(b"HTTP/1.1 304 Not Modified\r\n\r\n")

    with way.talking_to(FOUND, current) as (_, client):
        model = client.model("m")
        with pytest.raises(UnexpectedAnswer):
            model.pull()


def test_the_memory_of_a_pull_is_used_again_by_the_next_but_one(way):
    """As soon as nobody looks at it: a new array of 100 MB costs milliseconds."""
    pulled = answers(response(message(PULLED, WEIGHTS)))
    places = []

    with way.talking_to(FOUND, pulled) as (_, client):
        model = client.model("m")
        for _ in range(6):
            parameters = model.pull()
            places.append(parameters["w"].ctypes.data)
        kept = [model.pull() for _ in range(4)]

    assert len(set(places)) == 2
    assert len({id(parameters["w"].base) for parameters in kept}) == 4


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
def test_a_connection_that_breaks_is_made_again(way, act):
    """The same call goes through on the next connection."""
    pulled = answers(response(message(PULLED, WEIGHTS)))

    with way.talking_to(FOUND, act, act, pulled) as (server, client):
        parameters = client.model("m").pull()

    assert parameters["w"].tolist() == [1, 2, 3]
    assert len(server.requests) == 4


def test_a_server_that_never_answers_is_told(way):
    """After `read_s` the call is made again, until `retry_s`."""
    with way.talking_to(FOUND, stays_silent, timeout=HASTY) as (server, client):
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
def test_a_push_whose_answer_is_lost_is_sent_again_with_the_same_sequence(way, act):
    """Byte for byte the same request, so that the server can know it again."""
    patient = stepwell.Timeout(connect_s=30, read_s=0.3, retry_s=30)

    with way.talking_to(FOUND, OPENED, act, PUSHED, timeout=patient) as (server, client):
        worker = client.model("m").worker("w0")
        found = worker.push(GRADIENT)

    first, second = server.requests[2:]
    assert found.outcome == "applied"
    assert first.message["sequence"] == second.message["sequence"] == 0
    assert first.body == second.body


def test_a_push_that_was_refused_after_a_reset_asks_before_the_next(way):
    """401 on the second attempt does not mean that the first had no effect."""
    acts = [FOUND, OPENED, resets, answers(problem("unauthenticated", 401)), PUSHED]

    with way.talking_to(*acts) as (server, client):
        worker = client.model("m").worker("w0")
        with pytest.raises(stepwell.errors.Unauthenticated):
            worker.push(GRADIENT)
        worker.push(GRADIENT)

    asked, pushed = server.requests[4:]
    assert asked.path == "/v1/models/m/workers/w0/pushes/0?epoch=1&incarnation=one&wait_s=20.0"
    assert pushed.message["sequence"] == 1


def test_a_large_push_that_is_refused_early_gets_the_refusal(way):
    """The server answers after the head and closes; the client hears why instead of an error."""
    layout = Layout.of({"w": np.zeros(1 << 20, np.float32)})
    found = answers(response(message({**DESCRIBED, "tensors": layout.to_json()})))
    refused = says(problem("fenced", 409))

    with way.talking_to(found, OPENED, refused) as (server, client):
        worker = client.model("m").worker("w0")
        with pytest.raises(Fenced):
            worker.push({"w": np.ones(1 << 20, np.float32)})

    assert server.requests[2].headers["content-length"] == str(len(server.requests[2].body))
    assert "transfer-encoding" not in server.requests[2].headers


# Leaving


def test_leaving_closes_the_session_once(way):
    """The server can stop waiting for this worker."""
    acts = [FOUND, OPENED, answers(response(b"", 204))]

    with way.talking_to(*acts) as (server, client):
        with client.model("m").worker("w0") as worker:
            pass
        worker.close()

    assert [f"{request.method} {request.path}" for request in server.requests[2:]] == [
        "DELETE /v1/models/m/workers/w0?epoch=1&incarnation=one"
    ]


@pytest.mark.parametrize(
    "act", [stays_silent, resets, says(b"garbage"), answers(problem("internal_error", 500))]
)
def test_leaving_never_masks_an_exception_and_takes_a_second_at_most(way, act, monkeypatch):
    """Whatever the server does at the end, the user's own error comes through."""
    monkeypatch.setattr("stepwell.session.CLOSE_S", 0.2)

    with (
        way.talking_to(FOUND, OPENED, act) as (server, client),
        pytest.raises(ZeroDivisionError),
        client.model("m").worker("w0"),
    ):
        1 / 0  # noqa: B018

    assert len(server.requests) == 3


def test_closing_is_given_one_second_in_all():
    """Half of it to connect, half to be answered."""
    from stepwell.session import CLOSE_S
    from stepwell.transport.direct import Requests
    from stepwell.transport.over_httpx import _options

    call = Call("DELETE", "/", timeout_s=CLOSE_S)
    direct = Requests(Endpoint("http://h")).timeout(call)
    httpxs = _options(call, iter)["timeout"]

    assert direct.connect_s + direct.read_s <= 1.0
    assert httpxs.connect + httpxs.read <= 1.0


def test_leaving_after_the_client_was_closed_is_no_error(way):
    """The order in which blocks end is the user's business."""
    with (
        way.talking_to(FOUND, OPENED) as (_, client),
        client.model("m").worker("w0"),
    ):
        client.close()


# Interruptions


@pytest.mark.parametrize(
    ("kind", "place"),
    [(BlockingClients, Response), (HttpxClients, httpx.Response)],
    ids=["tcp", "httpx"],
)
def test_ctrl_c_in_the_middle_of_a_push_leaves_it_unresolved(monkeypatch, kind, place):
    """The next push first asks what became of it, over another connection."""
    with Misbehaving(FOUND, OPENED, PUSHED) as server, kind().client(server.url) as client:
        worker = client.model("m").worker("w0").open()
        with monkeypatch.context() as patched:
            patched.setattr(place, "take" if place is Response else "iter_raw", interrupted)
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


# Connections that are kept


@pytest.fixture
def connected(monkeypatch):
    """Return a list that grows by each connection that is made directly."""
    made = []
    connect = Connection._connect

    def counted(connection, timeout_s):
        made.append(connection)
        connect(connection, timeout_s)

    monkeypatch.setattr(Connection, "_connect", counted)
    return made


def test_calls_one_after_the_other_share_a_connection(connected):
    """A refusal is an answer too, and leaves the connection as it is."""
    acts = [LISTED, answers(problem("model_not_found", 404)), LISTED]

    with Misbehaving(*acts) as server, stepwell.Client(server.url) as client:
        client.models()
        with pytest.raises(ModelNotFound):
            client.model("m")
        client.models()

    assert len(connected) == 1


def test_a_connection_that_the_server_closed_is_not_used_again(connected):
    """It is seen before the request goes out, so nothing has to be repeated."""
    listed = says(response(message({"models": []})))

    with Misbehaving(listed) as server, stepwell.Client(server.url) as client:
        for _ in range(3):
            client.models()
            connected[-1]._poll.poll(30_000)  # until the end has arrived

    assert len(connected) == len(server.requests) == 3


def test_calls_of_several_threads_have_a_connection_each(connected):
    """Answers never go to another thread's call."""
    together = threading.Barrier(4)

    def act(connection):
        together.wait(30)
        connection.send(response(message({"models": []})))

    with (
        Misbehaving(act) as server,
        stepwell.Client(server.url) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        found = [pool.submit(client.models) for _ in range(8)]
        assert [future.result(30) for future in found] == [[]] * 8

    assert len(connected) == 4


def test_connections_that_nobody_used_for_long_are_closed(connected, monkeypatch):
    """After a burst of threads their sockets do not stay open for ever."""
    pool = Pool(Endpoint("http://127.0.0.1:1"))
    with Misbehaving(LISTED) as server:
        old, new = Connection(Endpoint(server.url)), Connection(Endpoint(server.url))
        for connection in (old, new):
            connection._connect(30)
        pool.give_back(old)
        old._used_at -= KEEP_ALIVE_S + 1

        pool.give_back(new)
        found = pool.take()
        pool.close()

        assert found is new
        assert old._socket.fileno() == -1
        found.close()


def test_a_client_that_was_closed_makes_no_more_calls():
    """Each says so at once, in its own words, and is caught with all our errors."""
    client = stepwell.Client("http://127.0.0.1:1")
    client.close()

    with pytest.raises(ClientClosed, match="The client is closed; make another one"):
        client.models()


def test_an_asyncio_client_that_was_closed_says_so_too():
    """And not in the words of httpx."""

    async def call():
        client = stepwell.AsyncClient("http://127.0.0.1:1")
        await client.close()
        await client.models()

    with pytest.raises(ClientClosed, match="The client is closed; make another one"):
        asyncio.run(call())


def test_a_connection_given_back_to_a_closed_pool_is_closed():
    """Another thread closed the client while a call was under way."""
    pool = Pool(Endpoint("http://127.0.0.1:1"))
    with Misbehaving(LISTED) as server:
        connection = Connection(Endpoint(server.url))
        connection._connect(30)

        pool.close()
        pool.give_back(connection)

        assert connection._socket.fileno() == -1


@pytest.mark.parametrize("kind", [BlockingClients, HttpxClients])
def test_a_forked_process_makes_connections_of_its_own(kind):
    """It would read its parent's answers otherwise, and the parent the child's."""
    with Misbehaving(LISTED) as server, kind().client(server.url) as client:
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
    """Return the local ports of a client's connections that are kept."""
    transport = client._driver._transport
    if isinstance(transport, DirectTransport):
        kept = transport._pools.get()._kept
        return {connection._socket.getsockname()[1] for connection in kept}
    pool = transport._clients.get()._transport._pool
    return {
        connection._connection._network_stream.get_extra_info("client_addr")[1]
        for connection in pool.connections
    }


# Proxies


@pytest.fixture
def environment(monkeypatch):
    """Return what sets variables of an environment in which there is no proxy yet."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.delenv(spelling, raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_the_environments_proxy_is_used_for_another_machine(clients, environment, variable):
    """Plain http asks it for the whole URL."""
    acts = [says(response(message(DESCRIBED))), says(response(message(PULLED, WEIGHTS)))]
    with Misbehaving(*acts) as server, ForwardProxy(server.url) as proxy:
        environment(variable, proxy.url)
        with clients.client("http://stepwell.test:8700") as client:
            parameters = client.model("m").pull()

    assert parameters["w"].tolist() == [1, 2, 3]
    assert proxy.asked == [
        "GET http://stepwell.test:8700/v1/models/m HTTP/1.1",
        "GET http://stepwell.test:8700/v1/models/m/parameters HTTP/1.1",
    ]
    assert server.requests[0].headers["host"] == "stepwell.test:8700"


def test_a_proxy_makes_a_tunnel_for_https(clients, environment, certificate):
    """TLS is with the server, so the proxy sees names alone."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    with Misbehaving(LISTED, tls=tls) as server, ForwardProxy(server.url) as proxy:
        environment("HTTPS_PROXY", proxy.url)
        with clients.client("https://stepwell.test", verify=trusted) as client:
            assert client.models() == ["m"]

    assert proxy.asked == ["CONNECT stepwell.test:443 HTTP/1.1"]


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({}, "http://h.test", DirectTransport),
        ({"HTTP_PROXY": "http://p:1"}, "http://h.test", HttpxTransport),
        ({"HTTP_PROXY": "http://p:1"}, "https://h.test", DirectTransport),
        ({"HTTPS_PROXY": "http://p:1"}, "https://h.test", HttpxTransport),
        ({"ALL_PROXY": "http://p:1"}, "https://h.test", HttpxTransport),
        ({"ALL_PROXY": "http://p:1"}, "http://127.0.0.1:8700", DirectTransport),
        ({"ALL_PROXY": "http://p:1"}, "http://localhost:8700", DirectTransport),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "h.test"}, "http://h.test", DirectTransport),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": ".test"}, "http://h.test:9", DirectTransport),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "x.test"}, "http://h.test", HttpxTransport),
    ],
)
def test_a_blocking_client_is_direct_where_no_proxy_is_in_the_way(
    environment, variables, url, expected
):
    """The variables that other programs know, upper or lower case."""
    for name, value in variables.items():
        environment(name, value)

    transport = new_transport(Endpoint(url))

    assert type(transport) is expected
    transport.close()


# TLS and Unix sockets, with the real server


@pytest.fixture(scope="module")
def tls_server(certificate, tmp_path_factory):
    """Return a server that speaks TLS."""
    flags = ["--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1])]
    with served(tmp_path_factory.mktemp("data"), *flags) as server:
        yield server


def test_a_certificate_of_another_name_says_so(clients, certificate, tls_server):
    """It is trusted, and its advice is not how to trust it."""
    trusted = ssl.create_default_context(cafile=str(certificate[0]))
    url = tls_server.url.replace("127.0.0.1", "localhost")
    with (
        clients.client(url, verify=trusted) as client,
        pytest.raises(CertificateRefused, match="of another name or address"),
    ):
        client.models()


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


# Requests


def test_a_body_is_sent_in_pieces_that_are_views():
    """No piece is a copy of the caller's array."""
    from stepwell.transport.over_httpx import PIECE_BYTES, _pieces

    array = np.zeros(1 << 20, np.uint8)

    pieces = list(_pieces((b"head", memoryview(array))))

    assert pieces[0] == b"head"
    assert [len(piece) for piece in pieces[1:]] == [PIECE_BYTES] * 4
    assert all(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in pieces[1:])


@pytest.mark.parametrize("transport", [DirectTransport, HttpxTransport])
def test_a_request_says_what_it_is(transport):
    """Small calls are JSON; names with anything in them arrive as they are."""
    call = Call("PATCH", "/v1/x", {"names": ["a/b c", "ä&=+%?#"], "n": 1}, json={"a": 1})

    with Misbehaving(answers(response(message({"ok": True})))) as server:
        sender = transport(Endpoint(server.url, token="sw_push_x"))
        answer = sender.send(call)
        sender.close()

    request = server.requests[0]
    assert answer == Answer({"ok": True})
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "application/json"
    assert request.headers["authorization"] == "Bearer sw_push_x"
    assert request.headers["host"] == server.url.removeprefix("http://")
    assert json.loads(request.body) == {"a": 1}
    path, _, query = request.path.partition("?")
    assert (path, parse_qs(query)) == ("/v1/x", {"names": ["a/b c", "ä&=+%?#"], "n": ["1"]})


@pytest.mark.parametrize(("method", "expected"), [("POST", "0"), ("GET", None), ("DELETE", None)])
@pytest.mark.parametrize("transport", [DirectTransport, HttpxTransport])
def test_a_request_without_a_body_has_a_length_where_one_is_expected(transport, method, expected):
    """A proxy may answer 411 to a POST that does not say how long it is."""
    with Misbehaving(answers(response(message({})))) as server:
        sender = transport(Endpoint(server.url))
        sender.send(Call(method, "/v1/x"))
        sender.close()

    assert server.requests[0].headers.get("content-length") == expected
