"""What the guides say of metrics, flags, alerts, logs and limits is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import yaml
from stepwell_core import groups, layout, ledger, names, wire
from stepwell_core.session import STORED_RESULTS
from stepwell_server import framing, representations
from stepwell_server.cli import app
from stepwell_server.history import database
from stepwell_server.routes.gradients import PushHeader
from stepwell_server.routes.parameters import MAX_WAIT_S
from stepwell_server.settings import Settings

from tests.docs.blocks import ROOT

DOCS = ROOT / "docs"
OPERATIONS = (DOCS / "operations.md").read_text()
GUIDES = [
    DOCS / "operations.md",
    DOCS / "security.md",
    DOCS / "upgrades.md",
    *sorted((DOCS / "how-to").glob("*.md")),
    *sorted((DOCS / "tutorials").glob("*.md")),
]
LONG = re.compile(r"(?<![\w-])--([a-z][a-z-]+)")


def flags(command: object) -> set[str]:
    """Return all long options of a command and those below it."""
    found = {
        option.lstrip("-")
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    below = getattr(command, "commands", {}).values()
    return found.union(*(flags(each) for each in below))


@pytest.mark.parametrize("guide", [pytest.param(g, id=g.name) for g in GUIDES])
def test_flags_in_the_guides_are_those_of_the_commands(guide: Path) -> None:
    """Behind `stepwell`, or alone between backticks."""
    known = flags(typer.main.get_command(app))
    text = guide.read_text()

    said = {flag for line in re.findall(r"stepwell [^`\n]*", text) for flag in LONG.findall(line)}
    said |= {flag for code in re.findall(r"`(--[^`]+)`", text) for flag in LONG.findall(code)}

    assert said <= known


def test_metrics_in_the_guides_are_exported() -> None:
    """docs/metrics.md, which has all of them, is held by tests/server/routes/test_metrics.py."""
    known = re.findall(r"^\| `(stepwell_\w+)`", (DOCS / "metrics.md").read_text(), re.MULTILINE)

    said = {
        name for guide in GUIDES for name in re.findall(r"\bstepwell_[a-z_]+", guide.read_text())
    }

    assert said - {"stepwell_core", "stepwell_server"} <= set(known)


def test_alerts_are_those_of_the_observability_profile() -> None:
    """Each with the metrics that it looks at."""
    (group,) = yaml.safe_load((ROOT / "docker/observability/alerts.yml").read_text())["groups"]

    rows = re.findall(r"^\| `(Stepwell\w+)` \| (.*?) \|", OPERATIONS, re.MULTILINE)

    assert [name for name, _ in rows] == [rule["alert"] for rule in group["rules"]]
    for (_, cell), rule in zip(rows, group["rules"], strict=True):
        for metric in re.findall(r"`(\w+)", cell):
            assert metric in rule["expr"]


def test_the_log_has_the_events_of_the_guide_and_no_other_warning() -> None:
    """As first argument of a call of a logger, somewhere in the server."""
    sources = "".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    rows = OPERATIONS.partition("| log | means |")[2].partition("\n\n")[0].splitlines()

    said = {name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}

    assert not [name for name in said if not re.search(rf'log\.\w+\(\s*"{name}"', sources)]
    calls = r'log\.(?:warning|error|critical|exception)\(\s*"(\w+)"'
    assert set(re.findall(calls, sources)) <= said


def test_settings_in_the_guides_are_settings() -> None:
    """The keys of the example, and variables that begin with STEPWELL_."""
    variables = {f"STEPWELL_{name.upper()}" for name in Settings.model_fields}
    others = {"STEPWELL_URL", "STEPWELL_TOKEN", "STEPWELL_CACHE_DIR", "STEPWELL_CONFIG"}
    (example,) = re.findall(r"```toml\n(.*?)```", OPERATIONS, re.DOTALL)

    keys = set(re.findall(r"^(\w+) =", example, re.MULTILINE))
    said = {name for g in GUIDES for name in re.findall(r"\bSTEPWELL_[A-Z_]+", g.read_text())}

    assert keys <= set(Settings.model_fields)
    assert said <= variables | others


def test_the_limits_are_those_of_the_code() -> None:
    """Numbers of the table in the operations guide."""
    header = PushHeader.model_fields["metrics"].metadata
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    rows = [
        f"tensors of a model | {layout.MAX_TENSORS:,}, of {layout.MAX_DIMENSIONS} dimensions, "
        f"with names of {names.MAX_TENSOR_NAME_LENGTH} characters",
        f"a model | {layout.MAX_BYTES >> 40} TiB",
        f"groups of a model | {groups.MAX_GROUPS}",
        f"open sessions of a model | {ledger.MAX_OPEN_SESSIONS:,}",
        f"metrics with a push | {header[0].max_length}",
        f"names of metrics with a curve, of a model | {database.MOST_METRICS}",
        f"a msgpack body | `max_body_bytes`, {defaults['max_body_bytes'] >> 30} GiB",
        f"a JSON body | `max_json_bytes`, {defaults['max_json_bytes'] >> 20} MiB",
        f"parameters as JSON | {representations.MAX_JSON_ELEMENTS:,} elements",
        f"a request's header | {framing.MAX_HEADER_BYTES >> 10} KiB, "
        f"{framing.MAX_HEADER_LINES} lines",
        f"the header of a message | {wire.MAX_HEADER_BYTES >> 10} KiB",
        f"a pull's wait | {MAX_WAIT_S:.0f} s",
        f"results that are kept of a session, for repetitions | {STORED_RESULTS}",
    ]

    assert not [row for row in rows if f"| {row}" not in OPERATIONS]
