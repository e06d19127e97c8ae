"""A real Prometheus reads a real server with the files of the profile `observability`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests import servers
from tests.observability import (
    ALERTS,
    PACKAGE,
    ROOT,
    Prometheus,
    alert_expressions,
    loaded,
    panel_expressions,
    prometheus,
)
from tests.requirements import require_program
from tests.server.calls import Worker, create

pytestmark = pytest.mark.full

RATE_INTERVAL = "20s"
"""What Grafana would say for `$__rate_interval`, which it makes of the interval of scrapes."""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokens that the profile has."""
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run([str(ROOT / "docker" / "make-tokens"), str(folder)], check=True, timeout=30)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, secrets: Path) -> Iterator[str]:
    """Host and port of a server with those tokens."""
    tokens = str(secrets / "tokens")
    with servers.served(tmp_path_factory.mktemp("data"), STEPWELL_TOKEN_FILE=tokens) as process:
        yield process.url.removeprefix("http://")


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, secrets: Path, server: str
) -> Iterator[Prometheus]:
    """A Prometheus that has seen a model being pushed to."""
    token = (secrets / "admin-token").read_text().strip()
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        prometheus(folder, server, secrets / "read-token") as found,
        servers.http(f"http://{server}", token) as http,
    ):
        worker = Worker(http, create(http, "m"))
        worker.push()
        found.wait_for('stepwell_pushes_total{outcome="applied"} >= 1')
        worker.push()
        found.wait_for('stepwell_pushes_total{outcome="applied"} >= 2')
        yield found


def test_the_read_token_is_enough(watched):
    """Prometheus shows the token that `make-tokens` made for it, and is answered."""
    (target,) = watched.query("up")

    assert target["metric"]["job"] == "stepwell"
    assert target["value"][1] == "1"


def test_the_health_check_of_the_profile_is_answered(watched):
    """Who reads metrics for others is seen to be well itself."""
    check = loaded(ROOT / "docker-compose.yml")["services"]["prometheus"]["healthcheck"]
    path = check["test"][-1].removeprefix("http://127.0.0.1:9090")

    assert httpx.get(f"{watched.url}{path}").status_code == 200


@pytest.mark.parametrize("expression", sorted(set(panel_expressions())))
def test_every_panel_of_the_dashboard_has_something_to_show(expression, watched):
    """Once a model was pushed to, no panel is empty."""
    asked = expression.replace("$model", ".*").replace("$__rate_interval", RATE_INTERVAL)

    assert watched.query(asked), asked


@pytest.mark.parametrize("expression", sorted(set(alert_expressions())))
def test_where_all_is_well_nothing_is_reported(expression, watched):
    """No alert and no annotation for a server that only works."""
    assert watched.query(expression) == []


def test_a_server_that_refuses_the_token_counts_as_one_that_does_not_answer(
    tmp_path, secrets, server
):
    """Nobody believes that all is well where nothing can be seen."""
    token = tmp_path / "token"
    token.write_text("sw_read_of_another_server")

    with prometheus(tmp_path, server, token) as found:
        found.wait_for('up{job="stepwell"} == 0')


LABELS = 'job="stepwell",instance="server:8700"'
REQUESTS = f'stepwell_http_requests_total{{{LABELS},route="/v1",method="GET"'

FIRES: dict[str, tuple[dict[str, str], str]] = {
    "StepwellDown": ({f"up{{{LABELS}}}": "1 0x9"}, "3m"),
    "StepwellModelReadOnly": ({f'stepwell_model_read_only{{{LABELS},model="m"}}': "0 0 1x9"}, "3m"),
    "StepwellCheckpointFails": (
        {f'stepwell_checkpoint_failures_total{{{LABELS},model="m"}}': "0 0 1x9"},
        "5m",
    ),
    "StepwellCheckpointOld": (
        {
            f'stepwell_checkpoint_age_seconds{{{LABELS},model="m"}}': "0+60x120",
            f'stepwell_model_version{{{LABELS},model="m"}}': "0+1x120",
        },
        "70m",
    ),
    "StepwellStagingFull": (
        {f'stepwell_cuts_total{{{LABELS},reason="staging_refused"}}': "0 0 1x9"},
        "3m",
    ),
    "StepwellErrors": (
        {f'{REQUESTS},status="500"}}': "0+1x20"},
        "15m",
    ),
}
"""For each alert what is seen each minute, and when it comes."""

STAYS_QUIET: dict[str, tuple[dict[str, str], str]] = {
    "StepwellDown": ({f"up{{{LABELS}}}": "1 0 1x9"}, "3m"),  # a restart
    "StepwellCheckpointOld": (  # of a model that rests
        {
            f'stepwell_checkpoint_age_seconds{{{LABELS},model="m"}}': "0+60x120",
            f'stepwell_model_version{{{LABELS},model="m"}}': "7x120",
        },
        "119m",
    ),
    "StepwellErrors": (  # a push that was told to come again
        {f'{REQUESTS},status="503"}}': "0+1x20"},
        "15m",
    ),
}
"""What looks alike and is no reason to wake somebody."""


def alerts_at(folder: Path, alert: str, series: dict[str, str], at: str, fires: bool) -> str:
    """Return what `promtool test rules` finds wrong; nothing if the alert is as it should be."""
    rules = [rule for group in loaded(ALERTS)["groups"] for rule in group["rules"]]
    (rule,) = (rule for rule in rules if rule["alert"] == alert)
    shown = _shown(rule, series)
    test: dict[str, Any] = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "alert_rule_test": [
                    {"alertname": alert, "eval_time": at, "exp_alerts": [shown] if fires else []}
                ],
            }
        ],
    }
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump(test))
    command = [require_program("promtool", PACKAGE), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr if done.returncode else ""


def _shown(rule: dict[str, Any], series: dict[str, str]) -> dict[str, Any]:
    """Return the alert that a rule makes of the first series."""
    inside = next(iter(series)).split("{")[1].rstrip("}")
    labels = dict(pair.replace('"', "").split("=") for pair in inside.split(","))
    summary = rule["annotations"]["summary"]
    for name, value in labels.items():
        summary = summary.replace(f"{{{{ $labels.{name} }}}}", value)
    if rule["expr"].startswith("sum by (route)"):
        labels = {"route": labels["route"]}
    return {"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": {"summary": summary}}


def test_every_alert_is_tried():
    """An alert without a test below would be one that nobody has seen."""
    names = [rule["alert"] for group in loaded(ALERTS)["groups"] for rule in group["rules"]]

    assert sorted(names) == sorted(FIRES)


@pytest.mark.parametrize("alert", FIRES)
def test_an_alert_comes_and_says_what_is_wrong(alert, tmp_path):
    """With the summary that somebody reads at night, its names filled in."""
    series, at = FIRES[alert]

    assert alerts_at(tmp_path, alert, series, at, fires=True) == ""


@pytest.mark.parametrize("alert", STAYS_QUIET)
def test_what_passes_by_itself_wakes_nobody(alert, tmp_path):
    """A restart, a model that rests, a refusal that is repeated."""
    series, at = STAYS_QUIET[alert]

    assert alerts_at(tmp_path, alert, series, at, fires=False) == ""
