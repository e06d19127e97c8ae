"""Tests of `stepwell.endpoint`: which URLs and tokens there are, and what the environment says."""

from __future__ import annotations

import asyncio
import socket

import numpy as np
import pytest
import stepwell
from stepwell.endpoint import Endpoint
from stepwell.errors import ConnectionFailed, InvalidArgument
from stepwell.transport.failures import of_socket

from tests.client.misbehaving import Misbehaving, answers, closed_port, message, response

SHORT = stepwell.Timeout(connect_s=0.05, retry_s=0.05)


def ask_blocking(url):
    """Ask a server that is not there."""
    with stepwell.Client(url, timeout=SHORT) as client:
        client.models()


def ask_async(url):
    """Ask it through httpx."""

    async def asked():
        async with stepwell.AsyncClient(url, timeout=SHORT) as client:
            await client.models()

    asyncio.run(asked())


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8700",
        "ftp://127.0.0.1",
        "http://",
        "http://127.0.0.1:8700/api",
        "http://127.0.0.1:8700?x=1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://[::1",
        8700,
    ],
)
def test_what_is_no_servers_url_is_refused(url):
    """The sentence shows one."""
    with pytest.raises(InvalidArgument, match=r"like http://127.0.0.1:8700"):
        stepwell.Client(url)


@pytest.mark.parametrize("url", ["unix://", "unix:///", "unix://run/stepwell.sock"])
def test_the_url_of_a_socket_has_a_whole_path(url):
    """What stands before the path would be a host."""
    with pytest.raises(InvalidArgument, match=r"like unix:///run/stepwell/stepwell.sock"):
        stepwell.Client(url)


def test_a_url_may_name_a_unix_socket(tmp_path, monkeypatch):
    """As an argument or in the environment, so a worker in another container needs nothing else."""
    from tests import servers

    with servers.hosted(tmp_path) as server:
        url = f"unix://{tmp_path / 'stepwell.sock'}"
        monkeypatch.setenv("STEPWELL_URL", url)
        with stepwell.Client() as client:
            client.create_model("m", {"w": np.zeros(3, np.float32)}, optimizer="sgd")
        with stepwell.Client(url) as client, stepwell.Client(server.url) as other:
            assert client.models() == other.models() == ["m"]

    assert Endpoint.find(url, None, None).name == url


def make_stale(path):
    """Leave a socket behind, as a server that was killed does."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: None, "there is no such file"),
        (make_stale, "nobody listens there"),
        (lambda path: path.write_text("x"), "nobody listens there"),
    ],
)
@pytest.mark.parametrize("ask", [ask_blocking, ask_async])
def test_a_socket_that_cannot_be_reached_is_named_with_the_reason(tmp_path, prepare, reason, ask):
    """And not as http://localhost, which nobody has typed."""
    path = tmp_path / "stepwell.sock"
    prepare(path)

    with pytest.raises(ConnectionFailed, match=reason) as caught:
        ask(f"unix://{path}")

    assert caught.value.message.startswith(f"unix://{path} cannot be reached")


def test_a_socket_of_another_user_is_said_to_be():
    """A test is run by root, too, who may connect to all."""
    error = of_socket(PermissionError(), "unix:///x", is_connected=False, was_sent=False)

    assert "it is another user's" in error.message


def test_a_path_that_no_socket_can_have_is_refused(tmp_path):
    """At once, with the number that holds."""
    with pytest.raises(InvalidArgument, match="at most 107 bytes"):
        stepwell.Client(uds="/" + "a" * 107)


@pytest.mark.parametrize("content", [None, "no certificate"])
@pytest.mark.parametrize("ask", [ask_blocking, ask_async])
def test_certificates_that_cannot_be_read_are_named(tmp_path, monkeypatch, content, ask):
    """The error of the library names neither the file nor the variable."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))

    with pytest.raises(InvalidArgument, match=rf"`SSL_CERT_FILE` .* Received: '{path}'"):
        ask("https://127.0.0.1:9")


def test_a_password_in_a_url_is_refused_and_not_shown():
    """It would take the place of the token, and end in logs."""
    with pytest.raises(InvalidArgument) as caught:
        stepwell.Client("http://user:secret@127.0.0.1:8700")

    assert "secret" not in str(caught.value)
    assert "//...@127.0.0.1:8700" in str(caught.value)


@pytest.mark.parametrize("token", ["sw\x00push", "sw_ü", "sw_a\nb"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token):
    """A header cannot have it."""
    with pytest.raises(InvalidArgument) as caught:
        stepwell.Client(token=token)

    assert token not in str(caught.value)


def test_a_token_is_not_in_what_is_shown_of_an_endpoint():
    """Tracebacks and logs show objects."""
    assert "sw_push_secret" not in repr(Endpoint("http://127.0.0.1", "sw_push_secret"))


def test_a_timeout_is_a_value_with_names():
    """A bare number would not say which of the three it is."""
    with pytest.raises(InvalidArgument, match=r"stepwell.Timeout\(retry_s=60\). Received: float"):
        stepwell.Client(timeout=5.0)


def test_what_is_not_given_comes_from_the_environment(clients, monkeypatch):
    """`STEPWELL_URL` and `STEPWELL_TOKEN`; a line end in a secret file does no harm."""
    listed = answers(response(message({"models": []})))
    with Misbehaving(listed) as server:
        monkeypatch.setenv("STEPWELL_URL", server.url)
        monkeypatch.setenv("STEPWELL_TOKEN", "sw_read_abc\n")
        with clients.client() as client:
            client.models()
        with clients.client(server.url, token="sw_read_def") as client:
            client.models()

    assert [request.headers["authorization"] for request in server.requests] == [
        "Bearer sw_read_abc",
        "Bearer sw_read_def",
    ]


def test_a_token_may_come_from_a_secret_file(tmp_path, monkeypatch):
    """The first line that is one; a token that is given, or in the environment, goes before it."""
    path = tmp_path / "token"
    path.write_text("# of the workers\n\n  sw_push_abc \nsw_push_def\n")
    monkeypatch.delenv("STEPWELL_TOKEN", raising=False)
    monkeypatch.setenv("STEPWELL_TOKEN_FILE", str(path))

    assert Endpoint.find(None, None, None).token == "sw_push_abc"
    assert Endpoint.find(None, "sw_push_x", None).token == "sw_push_x"
    monkeypatch.setenv("STEPWELL_TOKEN", "sw_push_y")
    assert Endpoint.find(None, None, None).token == "sw_push_y"


def test_a_secret_file_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    """A worker without its token would get a 401 that says nothing of the file."""
    monkeypatch.delenv("STEPWELL_TOKEN", raising=False)
    monkeypatch.setenv("STEPWELL_TOKEN_FILE", str(tmp_path / "absent"))

    with pytest.raises(InvalidArgument, match="`STEPWELL_TOKEN_FILE` names a file that cannot be"):
        stepwell.Client()


def test_a_token_in_the_clear_to_another_machine_is_warned_about(clients):
    """Over https, or on this machine, it is nobody's business."""
    with pytest.warns(UserWarning, match="travels in the clear"):
        clients.client("http://192.0.2.1:8700", token="sw_x").close()
    clients.client("https://192.0.2.1:8700", token="sw_x").close()
    clients.client("http://127.0.0.1:8700", token="sw_x").close()
    clients.client("http://192.0.2.1:8700").close()


def test_a_companys_proxy_is_not_asked_about_this_machine(clients, monkeypatch):
    """`HTTP_PROXY` is in many environments, and cannot reach loopback."""
    listed = answers(response(message({"models": []})))
    with closed_port() as proxy, Misbehaving(listed) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("ALL_PROXY", proxy)
        with clients.client(server.url) as client:
            assert client.models() == []
