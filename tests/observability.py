"""The files of the compose profile `observability`, and a real Prometheus that runs with them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.polling import soon
from tests.requirements import require_program
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docker" / "observability"
ALERTS = FOLDER / "alerts.yml"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "stepwell.json"

DEADLINE_S = 60.0
PACKAGE = "prometheus"


def loaded(path: Path) -> Any:
    """Return what a file of YAML or JSON says."""
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def panel_expressions() -> Iterator[str]:
    """Yield every PromQL expression of the dashboard's panels."""
    for panel in loaded(DASHBOARD)["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def alert_expressions() -> Iterator[str]:
    """Yield every PromQL expression of the alerts and of the dashboard's annotations."""
    yield from (note["expr"] for note in loaded(DASHBOARD)["annotations"]["list"])
    for group in loaded(ALERTS)["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


@dataclass
class Prometheus:
    """A Prometheus that runs.

    Attributes:
        url: Where it listens.
    """

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples that an expression has now; fails if it is none."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression as soon as it has some."""
        return soon(lambda: self.query(expression), lambda: f"{expression} stayed without samples")

    def is_ready(self) -> bool:
        """Return whether it answers questions; at its start it answers 503."""
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/-/ready").status_code == 200
        return False


@contextlib.contextmanager
def prometheus(folder: Path, server: str, token: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the profile's own settings, but for where things are and how often.

    Args:
        folder: For its data.
        server: Host and port of what it reads.
        token: The file of the token that it shows.
    """
    program = require_program("prometheus", PACKAGE)
    settings = loaded(FOLDER / "prometheus.yml")
    settings["global"]["scrape_interval"] = "100ms"
    settings["rule_files"] = [str(ALERTS)]
    (job,) = settings["scrape_configs"]
    job["authorization"]["credentials_file"] = str(token)
    job["static_configs"] = [{"targets": [server]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    address = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=log)
    try:
        running = Prometheus(f"http://{address}")
        soon(
            lambda: running.is_ready() or process.poll() is not None,
            lambda: "Prometheus does not begin",
        )
        yield running
        assert process.poll() is None, (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
