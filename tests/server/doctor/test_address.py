"""What is found of an address."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

import pytest
from stepwell_server.doctor import address
from stepwell_server.doctor.address import check_address
from stepwell_server.settings import Settings
from stepwell_server.tokens import TokenStore

from tests import servers


def findings(path, **settings):
    """Return what is found, by check."""
    return {f.check: f for f in check_address(Settings.load(data_dir=path, **settings))}


def test_a_port_that_is_free_is_well(tmp_path):
    """So is a Unix socket."""
    assert findings(tmp_path, port=0)["port"].state == "ok"
    assert findings(tmp_path, uds=tmp_path / "s")["port"].state == "ok"


def test_a_server_of_ours_is_told_from_another_program(tmp_path):
    """One that runs on this folder is well; one on another, and a stranger, have the port."""
    with servers.hosted(tmp_path) as server:
        port = urlsplit(server.url).port
        ours = findings(tmp_path, port=port)["port"]
        other = findings(tmp_path / "other", port=port)["port"]
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        theirs = findings(tmp_path, port=port)["port"]

    assert (ours.state, "answers" in ours.found) == ("ok", True)
    assert (other.state, "another data folder" in other.found) == ("failed", True)
    assert (theirs.state, "another program" in theirs.found) == ("failed", True)
    assert f":{port}" in theirs.advice


def test_a_server_with_tls_is_ours_too(tmp_path, certificate):
    """Its health is asked over TLS, if the settings have a certificate."""
    cert, key = certificate
    with servers.hosted(tmp_path, tls_cert=cert, tls_key=key) as running:
        port = urlsplit(running.url).port
        finding = findings(tmp_path, port=port, tls_cert=cert, tls_key=key)["port"]

    assert finding.state == "ok"


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_fails(tmp_path, host):
    """As the server would at its start."""
    finding = findings(tmp_path, host=host, port=0)["port"]

    assert (finding.state, "--host" in finding.advice) == ("failed", True)


def test_tokens_are_asked_for_where_others_can_come(tmp_path):
    """None: it would not start. One: tokens in the clear are a warning. On loopback all is well."""
    states = [findings(tmp_path, host="0.0.0.0", port=0)["tokens"].state]
    states.append(findings(tmp_path, port=0)["tokens"].state)
    TokenStore(tmp_path).create("admin")
    states.append(findings(tmp_path, host="0.0.0.0", port=0)["tokens"].state)
    states.append(findings(tmp_path, port=0)["tokens"].state)

    assert states == ["failed", "ok", "warning", "ok"]


def test_a_file_of_tokens_that_cannot_be_read_fails(tmp_path):
    """With the sentence that the server would say."""
    (tmp_path / "tokens.json").write_text("{")

    assert findings(tmp_path, port=0)["tokens"].state == "failed"


def test_a_certificate_that_a_server_could_not_use_fails(tmp_path, certificate):
    """One that is not there, or has no key; of a good one the days are told."""
    cert, key = certificate
    missing = findings(tmp_path, port=0, tls_cert=tmp_path / "none")["certificate"]
    keyless = findings(tmp_path, port=0, tls_cert=cert)["certificate"]
    good = findings(tmp_path, port=0, tls_cert=cert, tls_key=key)["certificate"]

    assert (missing.state, str(tmp_path / "none") in missing.found) == ("failed", True)
    assert (keyless.state, bool(keyless.advice)) == ("failed", True)
    assert (good.state, "ends in" in good.found) == ("warning", True)  # made for two days


@pytest.mark.parametrize(("days", "state"), [(-1, "failed"), (3, "warning"), (300, "ok")])
def test_a_certificate_is_told_by_its_last_day(tmp_path, certificate, monkeypatch, days, state):
    """A server reads it at its start, so somebody must know before."""
    cert, key = certificate
    last = time.gmtime(time.time() + (days + 0.5) * 86400)
    text = time.strftime("%b %d %H:%M:%S %Y GMT", last)
    monkeypatch.setattr(address, "_last_moment", lambda cert: text)

    assert findings(tmp_path, port=0, tls_cert=cert, tls_key=key)["certificate"].state == state


def test_a_unix_socket_is_looked_at_as_a_start_would(tmp_path):
    """A file, a long path, no folder, another server's; what a dead server left is well."""
    (tmp_path / "file").write_text("x")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen()
        paths = ["file", "a" * 108, "none/s", "other", "dead"]
        states = [findings(tmp_path, uds=tmp_path / path)["port"].state for path in paths]

    assert states == ["failed"] * 4 + ["ok"]
    assert (tmp_path / "dead").is_socket()


def test_the_socket_of_the_server_on_this_folder_is_well(tmp_path):
    """It is that server's."""
    with servers.hosted(tmp_path, uds=tmp_path / "s"):
        finding = findings(tmp_path, uds=tmp_path / "s")["port"]

    assert (finding.state, "answers" in finding.found) == ("ok", True)
