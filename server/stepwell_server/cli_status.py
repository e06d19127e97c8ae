"""`stepwell status`, `models` and `workers`: what a server does at the moment, on one screen."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import typer

from stepwell_server.cli_options import AsJson, ModelName, Url
from stepwell_server.cli_questions import Questions
from stepwell_server.cli_tables import table, width_of_stdout

EXIT_FAILED = 1

ABOUT = ("stepwell", "protocol", "durability")
"""What `status` says of a server as it says it itself."""

NUMBERS = ("version", "parameters", "size", "sessions", "journal", "pushes", "epoch")
LEAST_NEEDED = ("optimizer", "parameters", "consistency", "journal", "last checkpoint", "size")
"""Columns that a narrow terminal goes without, this one first."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status")(status)
    app.command("models")(models)
    app.command("workers")(workers)


def status(url: Url = None, as_json: AsJson = False) -> None:
    """Show a server: its models, versions, sessions, staging, durability and last checkpoints.

    Ends with 1 if the server is not ready, or a model is read-only since its disk failed.
    """
    with Questions(url) as questions:
        health = questions.ask("/readyz", "status")
        about = questions.ask("/v1", *ABOUT, "counts")
        found = questions.ask("/v1/models", "models")["models"]
    told = {
        "url": questions.url,
        "status": health["status"],
        **{name: about[name] for name in ABOUT},
        "staging": about.get("staging"),  # an older server does not say
        "counts": about["counts"],
        "models": [_summary(model, questions.now_s) for model in found],
    }
    if as_json:
        typer.echo(json.dumps(told))
    else:
        _show_server(told)
        _show_models(told["models"])
    if told["status"] != "ready":
        raise typer.Exit(EXIT_FAILED)


def models(url: Url = None, as_json: AsJson = False) -> None:
    """List the models: versions, sizes, optimizers, sessions, checkpoints."""
    with Questions(url) as questions:
        found = questions.ask("/v1/models", "models")["models"]
    if as_json:
        typer.echo(json.dumps({"models": found}))
    else:
        _show_models([_summary(model, questions.now_s) for model in found])


def workers(
    model: ModelName,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the newest session of every worker of a model."""
    from stepwell_core.names import check_identifier

    with Questions(url) as questions:
        path = f"/v1/models/{check_identifier(model, 'model')}/workers"
        found = questions.ask(path, "workers")["workers"]
    if as_json:
        typer.echo(json.dumps({"workers": found}))
        return
    rows = [
        [
            worker["worker"],
            "open" if worker["is_open"] else "closed",
            str(worker["last_sequence"] + 1),
            str(worker["epoch"]),
        ]
        for worker in found
    ]
    _print_table(
        ("worker", "session", "pushes", "epoch"), rows, f"model {model} has no workers yet"
    )


def _summary(model: dict[str, Any], now_s: float) -> dict[str, Any]:
    """Return what `status` says of a model, from what the server says of it and its clock."""
    durability = model["durability"]
    created = durability.get("checkpoint_created")  # an older server does not say
    made_s = datetime.fromisoformat(created).timestamp() if created else None
    return {
        **{name: model[name] for name in ("name", "version", "parameters", "bytes")},
        "optimizer": model["optimizer"]["class_name"],
        "consistency": model["consistency"]["mode"],
        "open_sessions": model.get("open_sessions"),
        "journal_bytes": durability["journal_bytes"],
        "read_only": durability["read_only"],
        "recovered": durability.get("recovered"),
        "checkpoint": durability["checkpoint"],
        "checkpoint_age_s": None if made_s is None else max(0.0, now_s - made_s),
        "is_writing": durability["writing"] is not None,
    }


def _show_server(told: dict[str, Any]) -> None:
    cuts = [f"{name} {count}" for name, count in told["counts"].items() if count]
    staging = told["staging"]
    lines = [
        f"{told['url']}  stepwell {told['stepwell']}  {told['status']}",
        f"durability  {told['durability']}",
    ]
    if staging is not None:
        used, idle, budget = (
            bytes_shown(staging[f"{name}_bytes"]) for name in ("used", "idle", "budget")
        )
        lines.append(f"staging     {used} of {budget} in use, {idle} idle")
    if cuts:
        lines.append(f"cut off     {', '.join(cuts)}")
    lines += [
        f"read-only   {m['name']}: {m['read_only']}" for m in told["models"] if m["read_only"]
    ]
    for model in told["models"]:
        lines += [f"recovered   {model['name']}: {loss}" for loss in _losses(model["recovered"])]
    typer.echo("\n".join(lines) + "\n")


def _losses(recovered: dict[str, Any] | None) -> list[str]:
    """Return sentences on what a model may not have that it had before the server's start."""
    if recovered is None:
        return []
    losses = []
    if damaged := recovered.get("damaged"):
        losses.append(
            f"checkpoint {', '.join(damaged)} is damaged; it went on from {recovered['checkpoint']}"
        )
    if not recovered["is_whole"]:
        losses.append(
            f"the end of its history may be lost; it went on at version {recovered['version']}"
        )
    return losses


def _show_models(summaries: list[dict[str, Any]]) -> None:
    columns = ("model", "version", "parameters", "size", "optimizer", "consistency", "sessions")
    rows = [
        [
            model["name"],
            str(model["version"]),
            f"{model['parameters']:,}",
            bytes_shown(model["bytes"]),
            model["optimizer"],
            model["consistency"],
            "?" if model["open_sessions"] is None else str(model["open_sessions"]),
            bytes_shown(model["journal_bytes"]),
            _checkpoint_shown(model),
        ]
        for model in summaries
    ]
    _print_table((*columns, "journal", "last checkpoint"), rows, "there are no models yet")


def _checkpoint_shown(model: dict[str, Any]) -> str:
    age_s = model["checkpoint_age_s"]
    shown = model["checkpoint"] or "none"
    if age_s is not None:
        shown += f", {age_shown(age_s)} ago"
    return f"{shown}; one is being written" if model["is_writing"] else shown


def _print_table(columns: tuple[str, ...], rows: list[list[str]], nothing: str) -> None:
    from rich.console import Console

    if not rows:
        typer.echo(nothing)
        return
    console = Console(markup=False, highlight=False, width=width_of_stdout())
    console.print(table(columns, rows, console.width, numbers=NUMBERS, may_go=LEAST_NEEDED))


def bytes_shown(nbytes: float) -> str:
    """Return a number of bytes for people: three digits, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 999.5 or unit == "TB":
            break
        nbytes /= 1000
    decimals = 0 if unit == "B" or nbytes >= 99.5 else 1 if nbytes >= 9.95 else 2
    return f"{nbytes:.{decimals}f} {unit}"


def age_shown(seconds: float) -> str:
    """Return a time for people, in its largest unit."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{int(seconds // length_s)} {unit}"
    return f"{int(seconds)} s"
