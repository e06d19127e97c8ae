"""The image and the compose project, for real: built, run, looked at from outside, stopped.

Needs a Docker engine. The project has a name, a port, tokens and image tags of its own, and nothing
but the images is left behind; they make the next build short.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.numpy

from tests.polling import soon
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
BUILD_S = 900.0
DEADLINE_S = 180.0

ACCURACY = 0.97
WORKERS = 4
PUSHES = 2400

ADDED_BYTES = 400e6
"""What the server's image may add to its base."""

TLS_NAME = "stepwell.example"

DEMO = ("--profile", "demo")
BASE = "python:3.11-slim-bookworm"


@cache
def compose_command() -> tuple[str, ...]:
    """Return how Compose is called here; nothing where it is not installed."""
    if shutil.which("docker") and succeeds("docker", "compose", "version"):
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else ()


def succeeds(*command: str) -> bool:
    """Whether a command ends with 0, soon."""
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@cache
def what_is_missing() -> str:
    """Return why the images cannot be tried here, or nothing."""
    if shutil.which("docker") is None:
        return "the command `docker` is not installed"
    if not succeeds("docker", "info"):
        return "no Docker engine answers `docker info`"
    if not compose_command():
        return "neither `docker compose` nor `docker-compose` is installed"
    return ""


pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(BUILD_S + 4 * DEADLINE_S),
    pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing()),
]


class Project:
    """A compose project, and the containers in it.

    Args:
        secrets: Folder of its tokens.
    """

    def __init__(self, secrets: Path) -> None:
        self.secrets = secrets
        self.port, self.tls_port = free_port(), free_port()
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": f"stepwell-test-{os.getpid()}",
            "STEPWELL_IMAGE": "stepwell-test",
            "STEPWELL_PUBLISHED_PORT": str(self.port),
            "STEPWELL_SECRETS": str(secrets),
            "STEPWELL_TLS_NAMES": TLS_NAME,
            "STEPWELL_TLS_PORT": f"127.0.0.1:{self.tls_port}",
        }

    def compose(self, *arguments: str, timeout_s: float = DEADLINE_S) -> str:
        """Run Compose and return what it printed on stdout; a failure comes with the logs."""
        command = (*compose_command(), *arguments)
        try:
            return run(*command, timeout_s=timeout_s, environment=self._environment)
        except (AssertionError, subprocess.TimeoutExpired) as failure:
            logs = (*compose_command(), "logs", "--no-color")
            failure.add_note(run(*logs, environment=self._environment)[-4000:])
            raise

    def containers(self, service: str) -> list[str]:
        """Return the identifiers of a service's containers, of those that have ended too."""
        label = f"com.docker.compose.service={service}"
        project = f"com.docker.compose.project={self._environment['COMPOSE_PROJECT_NAME']}"
        filters = ("--filter", f"label={label}", "--filter", f"label={project}")
        return run("docker", "ps", "--all", "--quiet", *filters).split()

    def services(self) -> list[str]:
        """Return the services that have containers."""
        label = f"com.docker.compose.project={self._environment['COMPOSE_PROJECT_NAME']}"
        shown = ("--format", '{{.Label "com.docker.compose.service"}}')
        return run("docker", "ps", "--all", "--filter", f"label={label}", *shown).split()

    def inspect(self, service: str) -> list[dict[str, Any]]:
        """Return what the engine says of a service's containers."""
        return [json.loads(run("docker", "inspect", name))[0] for name in self.containers(service)]

    def server(self, service: str = "server") -> dict[str, Any]:
        """Return what the engine says of the server's container."""
        (container,) = self.inspect(service)
        return container

    def in_server(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the server's container; it may fail."""
        return subprocess.run(
            ["docker", "exec", self.server()["Id"], *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def wait_until_healthy(self, service: str = "server") -> None:
        """Wait until the engine calls the server healthy."""
        soon(
            lambda: self.server(service)["State"]["Health"]["Status"] == "healthy",
            lambda: self.compose("logs", "--no-color", service),
            deadline_s=DEADLINE_S,
            every_s=0.2,
        )

    def http(self, token: str | None = None) -> httpx.Client:
        """Return a plain client of the published port, with the token of that name."""
        headers = {"Authorization": f"Bearer {self.token(token)}"} if token else {}
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers=headers, trust_env=False, timeout=60
        )

    def token(self, name: str) -> str:
        """Return a token that `docker/make-tokens` made."""
        return (self.secrets / f"{name}-token").read_text().strip()


def run(
    *command: str, timeout_s: float = DEADLINE_S, environment: dict[str, str] | None = None
) -> str:
    """Run a command that has to succeed; returns its stdout."""
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert finished.returncode == 0, (
        f"{command} ended with {finished.returncode}\n"
        f"{finished.stdout[-4000:]}\n{finished.stderr[-4000:]}"
    )
    return finished.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project, built from these sources, with a server that is healthy."""
    secrets = tmp_path_factory.mktemp("secrets")
    run(str(ROOT / "docker" / "make-tokens"), str(secrets))
    run(str(ROOT / "docker" / "make-certificate"), TLS_NAME, str(secrets))
    project = Project(secrets)
    project.compose(*DEMO, "build", timeout_s=BUILD_S)
    try:
        project.compose("up", "-d")
        project.wait_until_healthy()
        yield project
    finally:
        profiles = (*DEMO, "--profile", "tls")
        project.compose(*profiles, "down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="module")
def outcome(project: Project) -> dict[str, Any]:
    """What the demo printed, alone on stdout, after its workers trained in their containers."""
    result: dict[str, Any] = json.loads(project.compose(*DEMO, "run", "--rm", "-T", "demo"))
    return result


def test_nothing_but_the_server_starts_by_itself(project: Project) -> None:
    """The demo and what is for other machines are asked for by name."""
    assert project.services() == ["server"]


def test_the_image_is_small(project: Project) -> None:
    """Without what the demo needs: that is in another target."""
    format_ = ("image", "inspect", "--format", "{{.Size}}")
    whole, base = (int(run("docker", *format_, name)) for name in ("stepwell-test", BASE))

    assert whole - base < ADDED_BYTES
    with project.http() as http:  # of plotly there is just what the dashboard needs
        style = re.search("/dashboard/[^/]+/style.css", http.get("/").text)
        assert style is not None
        assert len(http.get(style[0].replace("style.css", "plotly.min.js")).content) > 1e6
    assert project.in_server("python", "-c", "import matplotlib").returncode != 0


def test_the_server_has_no_right_that_it_does_not_need(project: Project) -> None:
    """No root, no capability, no way to gain one, nothing to write to but its data and /tmp."""
    status = project.in_server("cat", "/proc/1/status").stdout

    assert project.in_server("id", "-u").stdout.strip() == "10001"
    assert "Uid:\t10001\t10001\t10001\t10001\n" in status
    assert "CapBnd:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert project.server()["HostConfig"]["ReadonlyRootfs"] is True
    for path in ("/home/x", "/opt/stepwell/x", "/data/x", "/tmp/x"):
        is_kept_out = project.in_server("touch", path).returncode != 0
        assert is_kept_out is not path.startswith(("/data", "/tmp")), path
    project.in_server("rm", "/data/x", "/tmp/x")


def test_the_published_port_is_on_loopback_only(project: Project) -> None:
    """Tokens travel in the clear, so no other machine can reach the port."""
    bindings = project.server()["NetworkSettings"]["Ports"]["8700/tcp"]

    assert bindings == [{"HostIp": "127.0.0.1", "HostPort": str(project.port)}]


def test_without_a_token_everything_but_health_is_401(project: Project) -> None:
    """The server knows the tokens of the secret file and no others."""
    with project.http() as stranger, project.http("push") as known:
        assert stranger.get("/readyz").status_code == 200
        assert stranger.get("/v1/models").status_code == 401
        wrong = {"Authorization": f"Bearer sw_admin_00000000_{'0' * 64}"}
        assert stranger.get("/v1/models", headers=wrong).status_code == 401
        assert known.get("/v1/models").status_code == 200


def test_no_token_is_in_an_image_or_in_an_environment(project: Project) -> None:
    """Secrets come as files; the images were built without them."""
    server = json.dumps(project.server())
    files = project.in_server("find", "/", "-xdev", "-name", "*-token").stdout

    assert not any(project.token(name) in server for name in ("admin", "push"))
    assert files == ""


def test_workers_in_containers_train_to_the_bar(project: Project, outcome: dict[str, Any]) -> None:
    """Four containers push all their gradients, end with 0, and the accuracy is reported."""
    workers = project.inspect("worker")

    assert outcome["accuracy"] >= ACCURACY
    assert outcome["pushes"] == outcome["version"] == PUSHES
    assert [worker["State"]["ExitCode"] for worker in workers] == [0] * WORKERS
    assert len({worker["Config"]["Hostname"] for worker in workers}) == WORKERS
    with project.http("push") as http:
        found = http.get("/v1/models/digits/checkpoints").json()["checkpoints"]
    assert outcome["checkpoint"] in [checkpoint["id"] for checkpoint in found]


def test_the_picture_can_be_taken_out(project: Project, outcome: dict[str, Any]) -> None:
    """The training curve outlives the container that drew it."""
    command = (*DEMO, "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "demo", "-c")
    first_bytes = project.compose(*command, f"print(open({outcome['picture']!r}, 'rb').read(8))")

    assert first_bytes.strip() == r"b'\x89PNG\r\n\x1a\n'"


WORKER_PROGRAM = """
import json, stepwell
with stepwell.Client() as client:
    model = client.model("digits")
    with model.worker("visitor") as worker:
        gradients = {name: 0 * array for name, array in worker.pull().items()}
        result = worker.push(gradients)
    try:
        client.delete_model("digits")
    except stepwell.errors.Forbidden as error:
        print(json.dumps({"outcome": result.outcome, "delete": error.code}))
"""


@pytest.mark.usefixtures("outcome")
def test_a_workers_token_may_push_and_not_delete(project: Project) -> None:
    """From a worker's container, with the worker's secret, as its service is set up."""
    command = (*DEMO, "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "worker", "-c")
    said = json.loads(project.compose(*command, WORKER_PROGRAM))

    assert said == {"outcome": "applied", "delete": "forbidden"}


MEMORY_PROGRAM = """
import json, numpy as np, stepwell
with stepwell.Client("unix:///run/stepwell/stepwell.sock") as client:
    model = client.create_model("large", {"w": np.zeros(1 << 20, np.float32)}, optimizer="sgd")
    with model.worker("here") as worker:
        worker.pull()
        worker.push({"w": np.ones(1 << 20, np.float32)})
        is_shared = worker._memory._connection is not None
    changed = float(model.pull()["w"][-1])
    client.delete_model("large")
print(json.dumps({"is_shared": is_shared, "changed": changed}))
"""


def test_containers_share_memory_through_a_volume(project: Project) -> None:
    """The server's socket is in a volume of both, so a gradient is not sent but shown."""
    command = (*DEMO, "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "demo", "-c")
    said = json.loads(project.compose(*command, MEMORY_PROGRAM))

    assert said["is_shared"] is True
    assert said["changed"] < 0


@pytest.mark.usefixtures("outcome")
def test_a_stop_is_clean_and_a_start_goes_on_where_it_was(project: Project) -> None:
    """SIGTERM ends the server with 0 in its own time; models, incarnations and kernels stay."""
    before = model_as_it_is(project)
    kernels = project.in_server("ls", "/data/cache").stdout
    assert project.server()["Config"]["StopTimeout"] == 120

    project.compose("stop", "server")
    ended = project.server()["State"]
    project.compose("start", "server")
    project.wait_until_healthy()

    assert (ended["Status"], ended["ExitCode"], ended["OOMKilled"]) == ("exited", 0, False)
    assert model_as_it_is(project) == before
    assert project.in_server("ls", "/data/cache").stdout == kernels != ""


def model_as_it_is(project: Project) -> dict[str, Any]:
    """Return what must not change in a restart."""
    with project.http("push") as http:
        fields = http.get("/v1/models/digits").json()
        accept = {"Accept": "application/vnd.safetensors"}
        parameters = http.get("/v1/models/digits/parameters", headers=accept)
    assert parameters.status_code == 200, parameters.text
    kept = {name: fields[name] for name in ("incarnation", "version", "iterations")}
    tensors = safetensors.numpy.load(parameters.content)  # the header's order is not fixed
    return kept | {name: array.tobytes() for name, array in tensors.items()}


@pytest.mark.usefixtures("outcome")
def test_the_same_server_speaks_tls_to_other_machines(project: Project) -> None:
    """The profile `tls` takes the data over; the name is checked, and plain HTTP is no answer."""
    before = model_as_it_is(project)
    project.compose("stop", "server")
    project.compose("up", "-d", "server-tls")
    project.wait_until_healthy("server-tls")

    trusted = ssl.create_default_context(cafile=str(project.secrets / "tls-ca.pem"))
    headers = {"Authorization": f"Bearer {project.token('push')}", "Host": TLS_NAME}
    url = f"https://127.0.0.1:{project.tls_port}/v1/models/digits"
    client = partial(httpx.Client, verify=trusted, trust_env=False, headers=headers)
    with client() as http:
        model = http.get(url, extensions={"sni_hostname": TLS_NAME})
    with client() as http, pytest.raises(httpx.ConnectError, match="certificate"):
        http.get(url, extensions={"sni_hostname": "other.example"})

    assert model.json()["incarnation"] == before["incarnation"]
    assert model.json()["version"] == before["version"]
