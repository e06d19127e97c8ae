"""`stepwell checkpoint ...`: write, look at, verify, keep and bring back checkpoints.

Every command asks a running server, as any client does; `verify --data-dir` reads a data folder
without one, and changes nothing. What takes more than a call is in `cli_verify.py`, `cli_export.py`
and `cli_import.py`; how a server is asked, and how a person sees it, in `cli_asking.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stepwell_server import cli_asking, cli_export, cli_import, cli_verify
from stepwell_server.cli_interrupts import like_ctrl_c
from stepwell_server.cli_options import AsJson, ModelName, Url

if TYPE_CHECKING:  # not needed by a server that starts
    import stepwell

app = typer.Typer(
    help="Write, list, verify, restore and export checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

T = TypeVar("T")

EXIT_FAILED = 1

CheckpointId = Annotated[
    str, typer.Argument(help="Such as 000012-v345; see `list`.", metavar="CHECKPOINT")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def _ask(url: str | None, name: str, question: Callable[[stepwell.Model], T]) -> T:
    """Return what a model on the server answers, however long it takes.

    That is so for pins too: they wait for a checkpoint that is being written.
    """
    with cli_asking.sign_of_life(f"asking {name} ..."):
        return cli_asking.ask(url, name, question, long=True)


def _ask_under_a_bar(url: str | None, name: str, question: Callable[[stepwell.Model], T]) -> T:
    """Return what a model answers that reads or writes checkpoints for it, under a bar."""
    with cli_asking.checkpoint_bar(url, name):
        return cli_asking.ask(url, name, question, long=True)


def _tell(values: dict[str, Any], sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(values) if as_json else sentence)


def _confirm(question: str, yes: bool) -> None:
    """Ask on a terminal; elsewhere `--yes` is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} Say so with --yes")
    typer.confirm(question, abort=True)


def _values(checkpoint: stepwell.Checkpoint) -> dict[str, Any]:
    return dict(vars(checkpoint))


@app.command("create")
def create(
    model: ModelName,
    pinned: Annotated[bool, typer.Option("--pinned", help="Keep it for ever.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint beside training; it is durable and was read back when this returns."""
    made = _ask_under_a_bar(url, model, lambda m: m.checkpoint(pinned=pinned))
    _tell(_values(made), f"{made.id}  {made.bytes} bytes", as_json)


@app.command("list")
def list_checkpoints(model: ModelName, url: Url = None, as_json: AsJson = False) -> None:
    """List a model's checkpoints, oldest first; of one that cannot be read it says why."""
    found = cli_asking.ask(url, model, lambda m: m.checkpoints(), long=False)
    if as_json:
        typer.echo(json.dumps({"checkpoints": [_values(checkpoint) for checkpoint in found]}))
        return
    for checkpoint in found:
        pin = "  pinned" if checkpoint.pinned else ""
        size = f"{checkpoint.created}  {checkpoint.bytes} bytes"
        typer.echo(f"{checkpoint.id}  {checkpoint.invalid or size}{pin}")


@app.command("verify")
def verify(
    model: Annotated[str | None, typer.Argument(help="Name of the model.")] = None,
    checkpoint: Annotated[str | None, typer.Argument(help="One of them; all if none.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Read a data folder instead of asking a server.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Read checkpoints whole and check every tensor against its hash."""
    if data_dir is not None:
        if url is not None:
            raise typer.BadParameter("A folder is read without a server: --data-dir or --url")
        with cli_asking.bars() as progress:
            verdicts = cli_verify.verify_folder(data_dir, model, checkpoint, progress)
    elif model is None:
        raise typer.BadParameter("Name the model, or a folder with --data-dir")
    else:
        verdicts = _ask_under_a_bar(url, model, lambda m: cli_verify.verify_served(m, checkpoint))
    if as_json:
        typer.echo(json.dumps({"checkpoints": [asdict(verdict) for verdict in verdicts]}))
    else:
        for verdict in verdicts:
            typer.echo(f"{verdict.model}  {verdict.id or '-'}  {verdict.invalid or 'whole'}")
    if any(verdict.invalid for verdict in verdicts):
        raise typer.Exit(EXIT_FAILED)


@app.command("restore")
def restore(
    model: ModelName,
    checkpoint: CheckpointId,
    yes: Yes = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Go back to a checkpoint; what came after it stays in later checkpoints alone."""
    _confirm(f"Model {model!r} goes back to {checkpoint}, and its workers are told.", yes)
    version = _ask_under_a_bar(url, model, lambda m: m.restore(checkpoint))
    _tell({"version": version}, f"restored; the version is {version}", as_json)


@app.command("pin")
def pin(
    model: ModelName, checkpoint: CheckpointId, url: Url = None, as_json: AsJson = False
) -> None:
    """Keep a checkpoint for ever."""
    _ask(url, model, lambda m: m.pin(checkpoint))
    _tell({"id": checkpoint, "pinned": True}, f"{checkpoint} is kept", as_json)


@app.command("unpin")
def unpin(
    model: ModelName, checkpoint: CheckpointId, url: Url = None, as_json: AsJson = False
) -> None:
    """Let a checkpoint go when it is older than those that are kept."""
    _ask(url, model, lambda m: m.pin(checkpoint, pinned=False))
    _tell({"id": checkpoint, "pinned": False}, f"{checkpoint} is kept no longer", as_json)


@app.command("delete")
def delete(
    model: ModelName,
    checkpoint: CheckpointId,
    yes: Yes = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Delete a checkpoint, unless it is pinned, or no newer one is whole."""
    _confirm(f"Checkpoint {checkpoint} of model {model!r} is deleted.", yes)
    _ask(url, model, lambda m: m.delete_checkpoint(checkpoint))
    _tell({"id": checkpoint}, f"{checkpoint} is deleted", as_json)


@app.command("fork")
def fork(
    model: ModelName,
    checkpoint: CheckpointId,
    name: Annotated[str, typer.Argument(help="Of the new model.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create another model from a checkpoint: all but its sessions."""
    forked = _ask_under_a_bar(url, model, lambda m: m.fork(checkpoint, name))
    _tell({"name": forked.name}, f"created {forked.name}", as_json)


@app.command("export")
def export(
    model: ModelName,
    checkpoint: CheckpointId,
    folder: Annotated[Path, typer.Argument(help="Where its files go; made if it is not there.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint: two safetensors files and the manifest, all or none."""
    from stepwell.endpoint import Endpoint

    with like_ctrl_c(), cli_asking.bars() as progress:
        endpoint = Endpoint.find(url, None, None)
        paths = cli_export.export(endpoint, model, checkpoint, folder, progress)
    names = [str(path) for path in paths]
    _tell({"files": names}, "\n".join(names), as_json)


@app.command("import")
def import_state(
    model: ModelName,
    files: Annotated[list[Path], typer.Argument(help="Of safetensors, ours or others'.")],
    iterations: Annotated[
        int | None, typer.Option(min=0, help="Steps made so far, Keras's counter.")
    ] = None,
    yes: Yes = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Take over parameters and slots from safetensors files.

    A tensor is a parameter if it has the name of one, and else `<slot>/<parameter>`.
    """
    _confirm(f"Model {model!r} takes over other arrays, and its workers are told.", yes)
    arrays = cli_import.read_tensors(files)
    version = _ask_under_a_bar(url, model, lambda m: cli_import.take_over(m, arrays, iterations))
    _tell({"version": version}, f"imported; the version is {version}", as_json)
