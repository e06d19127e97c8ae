"""`stepwell doctor`: looks at this machine as a server that would start, and says what to do."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from stepwell.command import quick_to_leave

from stepwell_server.cli_options import AsJson
from stepwell_server.cli_settings import load_settings

EXIT_FAILED = 1

COLORS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "failed": typer.colors.RED}


def doctor(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where models would be kept [stepwell-data].")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port [8700].")] = None,
    config: Annotated[
        Path | None, typer.Option(envvar="STEPWELL_CONFIG", help="A TOML file with settings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look whether a server would run well here, with the settings that `serve` would have.

    Changes nothing. Ends with 1 if something has to be done before.
    """
    with quick_to_leave():
        from stepwell_server.doctor import Finding, examine

    settings = load_settings(config, data_dir=data_dir, host=host, port=port)
    findings: list[Finding] = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            _show(finding)
    is_well = all(finding.state != "failed" for finding in findings)
    if as_json:
        told = {"is_well": is_well, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(told))
    if not is_well:
        raise typer.Exit(EXIT_FAILED)


def _show(finding: object) -> None:
    state, check, found, advice = (
        str(getattr(finding, name)) for name in ("state", "check", "found", "advice")
    )
    has_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    color = COLORS[state] if has_color and os.environ.get("TERM") != "dumb" else None
    typer.echo(f"{typer.style(f'{state:8}', fg=color)} {check:14} {found}")
    if advice:
        typer.echo(f"{'':23} -> {advice}")
