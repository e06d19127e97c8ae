"""The profile `observability`: its files parse, fit together, and name metrics that there are.

What a real Prometheus makes of them is in `test_prometheus.py`; Grafana itself has no test.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests import servers
from tests.observability import (
    DASHBOARD,
    FOLDER,
    ROOT,
    alert_expressions,
    loaded,
    panel_expressions,
)
from tests.server.calls import Worker, create

METRIC = re.compile(r"\b(?:stepwell|process|python)_\w+\b")
BY = re.compile(r"\bby \(([^)]*)\)")
MATCHED = re.compile(r"[{,]\s*(\w+)\s*(?:=|!)")


def expressions() -> Iterator[str]:
    """Yield every PromQL expression of the dashboard and of the alerts."""
    yield from panel_expressions()
    yield from alert_expressions()
    for variable in loaded(DASHBOARD)["templating"]["list"]:
        yield variable["query"]["query"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of every sample that a server exports after one push, by the sample's name."""
    samples: dict[str, set[str]] = {}
    with (
        servers.hosted(tmp_path_factory.mktemp("data")) as server,
        servers.http(server.url) as http,
    ):
        Worker(http, create(http, "m")).push()
        for family in parse(http.get("/metrics").text):
            for sample in family.samples:
                samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_metric_and_label_that_is_asked_for_is_exported(expression, exported):
    """A panel that asks for what is not there stays empty, and an alert never comes."""
    metrics = set(METRIC.findall(expression))
    labels = {name.strip() for names in BY.findall(expression) for name in names.split(",")}
    labels |= set(MATCHED.findall(expression))

    assert metrics <= exported.keys()
    known = {"job"}.union(*(exported[metric] for metric in metrics))
    assert labels <= known, expression
    assert metrics or "up{" in expression


def test_every_file_of_the_profile_parses_and_is_there():
    """YAML and JSON; what the services mount exists."""
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert all(loaded(path) for path in files)

    services = loaded(ROOT / "docker-compose.yml")["services"]
    for name in ("prometheus", "grafana"):
        mounted = [volume for volume in services[name]["volumes"] if volume.startswith("./")]
        assert len(mounted) == 2
        assert all((ROOT / volume.split(":")[0]).exists() for volume in mounted)
        assert all(volume.endswith(":ro") for volume in mounted)


def test_without_the_profile_nothing_of_it_starts_and_none_is_open_to_others():
    """Both listen on loopback, with no capability and a root that nobody writes to."""
    services = loaded(ROOT / "docker-compose.yml")["services"]

    for name in ("prometheus", "grafana"):
        service = services[name]
        assert service["profiles"] == ["observability"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert ":latest" not in service["image"]


@pytest.mark.parametrize(
    ("name", "program", "path"),
    [("prometheus", "wget", "/-/healthy"), ("grafana", "curl", "/api/health")],
)
def test_both_are_asked_whether_they_are_well(name, program, path):
    """Where they listen in their container, with a program that their image has, in some time."""
    service = loaded(ROOT / "docker-compose.yml")["services"][name]
    (port,) = (published.rsplit(":", 1)[1] for published in service["ports"])

    check = service["healthcheck"]

    assert check["test"][:2] == ["CMD", program]
    assert check["test"][-1] == f"http://127.0.0.1:{port}{path}"
    assert {"interval", "timeout", "start_period", "retries"} <= check.keys()


def test_the_files_name_each_other_as_they_are_called():
    """Prometheus finds server, rules and token; Grafana finds Prometheus and the dashboard."""
    compose = loaded(ROOT / "docker-compose.yml")
    prometheus = loaded(FOLDER / "prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    (source,) = loaded(FOLDER / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    (provider,) = loaded(FOLDER / "grafana/provisioning/dashboards/stepwell.yml")["providers"]
    dashboard = loaded(DASHBOARD)

    (target,) = job["static_configs"][0]["targets"]
    assert target.split(":")[0] in compose["services"]
    assert compose["services"]["server"]["environment"]["STEPWELL_ALLOWED_HOSTS"] == "server"
    mounts = {volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]}
    assert set(prometheus["rule_files"]) <= mounts
    secret = Path(job["authorization"]["credentials_file"]).name
    assert secret in compose["services"]["prometheus"]["secrets"]
    assert source["url"].split("//")[1].split(":")[0] in compose["services"]
    grafana = {volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]}
    assert provider["options"]["path"] in grafana
    uids = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    assert uids == {source["uid"]}


def test_panels_have_numbers_and_units_of_their_own_and_do_not_overlap():
    """Grafana loads what overlaps, and then moves it somewhere."""
    panels = loaded(DASHBOARD)["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all("unit" in panel["fieldConfig"]["defaults"] for panel in panels)
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_make_tokens_makes_what_the_profile_needs(tmp_path):
    """A token that may read and no more, and a password; both known to nobody before."""
    subprocess.run([str(ROOT / "docker" / "make-tokens"), str(tmp_path)], check=True, timeout=30)

    token = (tmp_path / "read-token").read_text().strip()
    assert token.startswith("sw_read_")
    assert token in (tmp_path / "tokens").read_text().splitlines()
    assert len((tmp_path / "grafana-password").read_text()) == 32
