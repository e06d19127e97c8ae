"""`stepwell serve` as a process: started, stopped, killed, refused."""

from __future__ import annotations

import json
import socket
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from stepwell_server.tokens import TokenStore

from tests import servers
from tests.server.calls import Worker, assert_problem, create, described, image, pull
from tests.server.routes.test_workers import ask, sync, waiting_push


def test_sigterm_answers_who_waits_and_exits_with_0_and_a_checkpoint(tmp_path):
    """At once, not after the grace period; the next start goes on where it was."""
    with servers.served(tmp_path) as server, servers.http(server.url) as http:
        free, barrier = create(http), create(http, consistency=sync(2))
        Worker(http, free).push()
        before = [described(http, path) for path in (free, barrier)]
        worker = Worker(http, barrier)
        with ThreadPoolExecutor(1) as pool:
            waits = waiting_push(pool, worker)

            server.terminate()

            answer = waits.result()
        code = server.wait()
    events = [entry["event"] for entry in server.events]

    document = assert_problem(answer, 503, "shutting_down")
    assert "not admitted" in document["detail"]
    assert answer.headers["retry-after"] == "1"
    assert code == 0
    assert events[-1] == "stopped"
    assert not [entry for entry in server.events if entry.get("level") in ("error", "warning")]
    with servers.served(tmp_path) as again, servers.http(again.url) as http:
        after = [described(http, path) for path in (free, barrier)]
        worker.http = http
        assert after == before
        assert_problem(ask(worker), 404, "push_not_found")


def test_a_server_says_where_it_listens_and_where_it_keeps_what_it_has(tmp_path):
    """Whoever starts it in another folder finds no models, and sees here why."""
    with servers.served(tmp_path) as server:
        ready = next(entry for entry in server.events if entry["event"] == "ready")

    assert (ready["address"], ready["data_dir"]) == (server.url, str(tmp_path))


def test_a_killed_server_comes_back_with_a_new_incarnation(tmp_path):
    """With durability `memory` it is at its last checkpoint, and sessions of before are told."""
    memory = ("--durability", "memory")
    with servers.served(tmp_path, *memory) as server, servers.http(server.url) as http:
        path = create(http)
        worker = Worker(http, path)
        worker.push()
        http.post(f"{path}/checkpoints")
        saved = pull(http, path)
        worker.push()
        before = http.get(path).json()
        server.kill()
    with servers.served(tmp_path, *memory) as again, servers.http(again.url) as http:
        after = http.get(path).json()
        worker.http = http

        document = assert_problem(worker.try_push(), 409, "stale_incarnation")

        assert (before["version"], after["version"]) == (2, 1)
        assert document["incarnation"] == after["incarnation"] != before["incarnation"]
        assert document["last_sequence"] == 0
        assert {n: a.tobytes() for n, a in pull(http, path).items()} == {
            n: a.tobytes() for n, a in saved.items()
        }
        recovered = [entry for entry in again.events if entry["event"] == "model_recovered"]
        assert [entry["is_whole"] for entry in recovered] == [False]


def test_a_server_that_is_killed_while_it_creates_a_model_starts_again(tmp_path):
    """What was never answered 201 may be there or not, but it does not keep the server down."""
    with servers.served(tmp_path) as server:
        pass
    (tmp_path / ".tmp-halfway" / "checkpoints").mkdir(parents=True)

    with servers.served(tmp_path) as server, servers.http(server.url) as http:
        assert http.get("/v1/models").json() == {"models": []}

    assert not (tmp_path / ".tmp-halfway").exists()


def test_a_model_that_cannot_be_recovered_refuses_the_start_with_a_sentence(tmp_path):
    """No trace; it names the model and says what to do."""
    with servers.served(tmp_path) as server, servers.http(server.url) as http:
        create(http, "lost")
    for manifest in tmp_path.rglob("manifest.json"):
        manifest.write_bytes(b"{}")

    server = servers.start(tmp_path)

    assert server.wait() == 1
    assert server.events[0]["event"] == "checkpoint_invalid"
    assert "Model 'lost' has no checkpoint that is whole" in server.events[-1]["event"]
    assert not any("Traceback" in entry["event"] for entry in server.events)


def test_a_data_folder_in_use_refuses_a_second_server(tmp_path):
    """With the process id of the first."""
    with servers.served(tmp_path) as first:
        second = servers.start(tmp_path)

        assert second.wait() == 1
        assert (
            f"in use by another server (process {first.process.pid})" in second.events[0]["event"]
        )


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "Another program listens on"), ("0.0.0.0", "token create")]
)
def test_a_start_that_is_refused_makes_no_folder(tmp_path, host, reason):
    """A port that is taken, no token: one sentence and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = servers.start(tmp_path / "data", "--host", host, port=port)

        assert refused.wait() == 1
    assert reason in refused.events[0]["event"]
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_refuses_the_start_and_leaves_the_clean_stop(tmp_path):
    """The models are as they were."""
    with servers.served(tmp_path) as server, servers.http(server.url) as http:
        path = create(http)
        before = image(http, path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        refused = servers.start(tmp_path, port=taken.getsockname()[1])

        assert refused.wait() == 1
    with servers.served(tmp_path) as server, servers.http(server.url) as http:
        assert image(http, path) == before


def test_an_address_that_others_can_reach_needs_a_token(tmp_path):
    """The refusal says how to make one; with one the server starts."""
    refused = servers.start(tmp_path, "--host", "0.0.0.0")
    assert refused.wait() == 1
    assert "stepwell token create" in refused.events[0]["event"]
    token = TokenStore(tmp_path).create("read")

    with servers.served(tmp_path, "--host", "0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        with servers.http(url, token) as http, servers.http(url) as stranger:
            assert http.get("/v1").status_code == 200
            assert stranger.get("/v1").status_code == 401
        assert "no_tls" in [entry["event"] for entry in server.events]


def test_a_token_made_before_the_first_start_works(tmp_path):
    """`stepwell token create`, then `stepwell serve`, on a folder that did not exist."""
    token = TokenStore(tmp_path / "data").create("admin")

    with servers.served(tmp_path / "data") as server, servers.http(server.url, token) as http:
        assert http.get("/v1/models").json() == {"models": []}


@pytest.mark.parametrize("content", ["", "not a certificate"])
def test_a_certificate_that_cannot_be_used_refuses_the_start_with_a_sentence(tmp_path, content):
    """And not with a trace."""
    cert = tmp_path / "cert.pem"
    cert.write_text(content)

    server = servers.start(tmp_path / "data", "--tls-cert", str(cert))

    assert server.wait() == 1
    assert "cannot be used" in server.events[0]["event"]
    assert len(server.events) == 1


def test_a_unix_socket_is_served_like_a_port(tmp_path):
    """The log says its path."""
    path = tmp_path / "stepwell.sock"
    with servers.served(tmp_path / "data", "--uds", str(path)) as server:
        transport = servers.httpx.HTTPTransport(uds=str(path))
        with servers.http("http://localhost", transport=transport) as http:
            assert http.get("/v1").json()["protocol"] == 1

        assert server.url == str(path)
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600  # no token is needed, so for us alone


def test_a_unix_socket_that_asks_for_a_token_is_for_everyone(tmp_path):
    """As a port is; what a killed server left there is replaced, a living one's is not."""
    path = tmp_path / "s"
    TokenStore(tmp_path / "data").create("admin")
    with servers.served(tmp_path / "data", "--uds", str(path)) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        second = servers.start(tmp_path / "other", "--uds", str(path))
        assert second.wait() != 0
        assert f"Another server listens on {path}" in second.events[-1]["event"]
        server.process.kill()
        server.wait()
    with servers.served(tmp_path / "data", "--uds", str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666


def test_settings_come_from_file_environment_and_flags_together(tmp_path):
    """The process reads all three."""
    config = tmp_path / "stepwell.toml"
    config.write_text("push_wait_s = 1.5\nmax_json_bytes = 100\n")

    flags = ("--config", str(config))
    with (
        servers.served(tmp_path / "data", *flags, STEPWELL_MAX_JSON_BYTES="200") as server,
        servers.http(server.url) as http,
    ):
        limits = http.get("/v1").json()["limits"]

    assert (limits["push_wait_s"], limits["max_json_bytes"]) == (1.5, 200)


def test_logs_are_one_json_object_a_line(tmp_path):
    """Also those of the libraries."""
    with servers.served(tmp_path) as server:
        pass

    assert all({"event", "level", "timestamp"} <= entry.keys() for entry in server.events)
    assert json.dumps(server.events)
