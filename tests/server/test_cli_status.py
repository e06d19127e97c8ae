"""`stepwell status`, `models` and `workers`, beside a real server."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from stepwell_server.cli import main
from stepwell_server.cli_status import age_shown, bytes_shown

from tests import servers
from tests.server.calls import LAYOUT, Worker, create, new_name
from tests.server.registries import damage_newest_checkpoint
from tests.servers import ServerThread

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command against `server`; returns its exit code and what it printed."""
    monkeypatch.setenv("STEPWELL_URL", server.url)
    monkeypatch.delenv("STEPWELL_TOKEN", raising=False)
    monkeypatch.delenv("STEPWELL_TOKEN_FILE", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["stepwell", *arguments])
        code = main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def trained(http: httpx.Client) -> str:
    """The name of a model with two workers, one of them gone, and one push."""
    path = create(http, name := new_name())
    Worker(http, path, "gone")
    Worker(http, path, "here").push()
    http.delete(f"{path}/workers/gone")
    return name


def told(answer: tuple[int, str, str]) -> dict[str, Any]:
    """Return the one JSON object that a command printed."""
    code, out, err = answer
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    return dict(json.loads(out))


def test_status_is_one_screen_of_a_server(run, trained):
    """Where it is, how it is, and a line a model."""
    code, out, _ = run("status")

    assert code == 0
    lines = out.splitlines()
    assert "ready" in lines[0]
    assert "everysec" in lines[1]
    assert "staging" in lines[2]
    (row,) = [line.split() for line in lines if line.startswith(f"{trained} ")]
    assert row[1:8] == ["1", "16", "80", "B", "SGD", "async", "1"]
    assert "000001-v0" in row[-4]
    assert row[-1] == "ago"


def test_status_as_json_has_what_the_screen_has(run, trained, server):
    """One object, alone on stdout."""
    status = told(run("status", "--json"))

    assert (status["url"], status["status"]) == (server.url, "ready")
    assert status["staging"]["budget_bytes"] > status["staging"]["used_bytes"] == 0
    (model,) = [model for model in status["models"] if model["name"] == trained]
    assert (model["version"], model["open_sessions"], model["bytes"]) == (1, 1, LAYOUT.nbytes)
    assert model["journal_bytes"] > 0
    assert 0 <= model["checkpoint_age_s"] < 60


def test_models_are_listed(run, trained):
    """For people as a table, for programs as the server says it."""
    _, out, _ = run("models")
    models = told(run("models", "--json"))["models"]

    assert any(line.startswith(trained) for line in out.splitlines())
    (model,) = [model for model in models if model["name"] == trained]
    assert model["incarnation"]


def test_workers_are_listed_with_their_sessions(run, trained):
    """Those that are gone too."""
    _, out, _ = run("workers", trained)
    workers = told(run("workers", trained, "--json"))["workers"]

    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["gone", "closed", "0"],
        ["here", "open", "1"],
    ]
    assert [worker["is_open"] for worker in workers] == [False, True]


def test_a_model_without_workers_says_so(run, http):
    """Not an empty table."""
    create(http, name := new_name())

    assert run("workers", name)[:2] == (0, f"model {name} has no workers yet\n")


@pytest.mark.parametrize(("name", "sentence"), [("none-such", "no model"), ("../v1", "letters")])
def test_a_model_that_is_not_there_is_a_sentence(run, name, sentence):
    """And status 1; nothing on stdout."""
    code, out, err = run("workers", name)

    assert (code, out) == (1, "")
    assert err.startswith("stepwell: ")
    assert sentence in err


def test_a_degraded_server_ends_with_1_and_says_which_model(run, server, trained, monkeypatch):
    """A monitor that knows exit codes alone sees it."""
    recorder = server.application.registry.get(trained).recorder
    monkeypatch.setattr(type(recorder), "failure", property(lambda self: "the disk is broken"))

    code, out, _ = run("status")

    assert code == 1
    assert "degraded" in out
    assert f"{trained}: the disk is broken" in out


def test_what_may_be_lost_since_the_start_is_told(run, tmp_path):
    """A damaged checkpoint was passed over: nobody has to find that in a log."""
    with servers.hosted(tmp_path) as server, servers.http(server.url) as http:
        path = create(http, "m")
        Worker(http, path).push()
    damage_newest_checkpoint(tmp_path)

    with servers.hosted(tmp_path) as server:
        screen = run("status", "--url", server.url)
        (model,) = told(run("status", "--url", server.url, "--json"))["models"]

    went_on = "checkpoint 000002-v1 is damaged; it went on from 000001-v0"
    assert f"recovered   m: {went_on}\n" in screen[1]
    assert model["recovered"]["damaged"] == ["000002-v1"]


@pytest.mark.parametrize("command", [("status",), ("models",), ("workers", "m")])
def test_a_server_that_is_not_there_is_a_sentence_at_once(run, command):
    """Where was looked, and what to do; nobody is made to wait for one to come."""
    code, out, err = run(*command, "--url", "http://127.0.0.1:9", "--json")

    assert (code, out) == (1, "")
    assert "http://127.0.0.1:9 cannot be reached" in err
    assert "stepwell serve" in err


def test_something_else_that_answers_is_told_from_a_server(run):
    """Such as a web server that has the port."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        code, _, err = run("status", "--url", f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
        thread.join()

    assert code == 1
    assert "is not a Stepwell server" in err


@pytest.mark.parametrize("command", [("status",), ("models",), ("workers", "m"), ("top", "--once")])
@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b'{"detail": "Not Found"}'), (200, b'{"status": "ready"}'), (200, b"{}")],
)
def test_another_programs_json_is_told_from_a_servers(run, command, status, body):
    """FastAPI's own 404 is an object, too; and so is a health check."""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever, daemon=True)
        thread.start()
        code, out, err = run(*command, "--url", f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
        thread.join()

    assert (code, out) == (1, "")
    assert f"is not a Stepwell server, or an older one. Received: status {status}" in err


@pytest.mark.parametrize("is_secured", [True, False])
def test_the_wrong_scheme_is_said_to_be(run, certificate, tmp_path, is_secured):
    """Somebody is there, and to start a server would not help."""
    cert, key = certificate
    options = {"tls_cert": cert, "tls_key": key} if is_secured else {}
    with servers.hosted(tmp_path / "data", **options) as server:
        scheme, _, rest = server.url.partition("://")
        wrong = {"http": "https", "https": "http"}[scheme]
        code, _, err = run("status", "--url", f"{wrong}://{rest}")

    assert (code, f"its URL begins with {scheme}://" in err) == (1, True)


def test_a_closed_server_wants_a_token(run, tmp_path, monkeypatch):
    """Which comes from the environment; a wrong one is a sentence."""
    secret = "sw_read_00000000_" + "0" * 64
    file = tmp_path / "tokens"
    file.write_text(secret)
    file.chmod(0o600)
    with servers.hosted(tmp_path / "data", token_file=file) as closed:
        refused = run("status", "--url", closed.url)
        monkeypatch.setenv("STEPWELL_TOKEN_FILE", str(file))
        allowed = run("status", "--url", closed.url)

    assert (refused[0], allowed[0]) == (1, 0)
    assert "needs a token" in refused[2]
    assert "there are no models yet" in allowed[1]


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (999.9, "1.00 kB"), (12345, "12.3 kB"), (5e15, "5000 TB")],
)
def test_bytes_are_shown_with_three_digits(nbytes, shown):
    """Powers of 1000."""
    assert bytes_shown(nbytes) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (119, "1 min"), (7200, "2 h"), (1e6, "11 d")]
)
def test_ages_are_shown_in_their_largest_unit(seconds, shown):
    """Rounded down."""
    assert age_shown(seconds) == shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_the_shells(shell):
    """What docs/cli.md says to type prints a script."""
    command = [sys.executable, "-m", "stepwell_server", "--show-completion", shell]
    # Else Typer looks which shell runs the tests, and under make that is none it knows.
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    printed = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=environment
    )

    assert "complete" in printed.stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["ch"], ["checkpoint"]),
        (["checkpoint", "ve"], ["verify"]),
        (["demo", "--mo"], ["--mode", "--model"]),
        (["demo", "--mode", "b"], ["buffered", "bounded"]),
    ],
)
def test_bash_completes_commands_options_and_values(tmp_path, typed, completed):
    """In a real shell; what `python -m stepwell` prints completes `stepwell`, too."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    command = tmp_path / "stepwell"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m stepwell "$@"\n')
    command.chmod(0o755)
    script = """
        stepwell --show-completion bash > "$HOME/script" && . "$HOME/script"
        COMP_WORDS=(stepwell "$@"); COMP_CWORD=$#
        function=$(complete -p stepwell | sed "s/.*-F \\([^ ]*\\).*/\\1/")
        "$function" stepwell; printf "%s\\n" "${COMPREPLY[@]}"
    """
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    printed = subprocess.run(
        [bash, "--norc", "-c", script, "bash", *typed],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )

    assert printed.stdout.split() == completed


def test_a_certificate_of_ones_own_is_named_by_a_variable(
    run: Run,
    certificate: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SSL_CERT_FILE, as for all other commands; without it the reason is told."""
    cert, key = certificate
    with servers.hosted(tmp_path / "data", tls_cert=cert, tls_key=key) as secured:
        code, _, refused = run("status", "--url", secured.url)
        _, _, plain = run("status", "--url", secured.url.replace("https", "http"))
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        status = told(run("status", "--url", secured.url, "--json"))

    assert code == 1
    assert "is not trusted" in refused
    assert "SSL_CERT_FILE" in refused
    assert "its URL begins with https://" in plain  # and not that no server is there
    assert status["status"] == "ready"
