"""What is found of an address."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
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
