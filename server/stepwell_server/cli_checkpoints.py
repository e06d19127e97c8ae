"""`stepwell checkpoint ...`: write, look at, verify, keep and bring back checkpoints.

Every command asks a running server, as any client does; `verify --data-dir` reads a data folder
without one, and changes nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from stepwell_core.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    InvalidInput,
    StepwellError,
    UnknownTensor,
)

if TYPE_CHECKING:  # not needed by a server that starts
    import httpx
    import stepwell
    from rich.progress import Progress

app = typer.Typer(
    help="Write, list, verify, restore and export checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_USAGE = 2

Url = Annotated[
    str | None, typer.Option(help="Of the server [STEPWELL_URL, or http://127.0.0.1:8700].")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, alone, on stdout.")]
ModelName = Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")]
CheckpointId = Annotated[
    str, typer.Argument(help="Such as 000012-v345; see `list`.", metavar="CHECKPOINT")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

progress_console = Console(stderr=True)


def _ask(url: str | None, name: str, question: Callable[[stepwell.Model], T]) -> T:
    """Return what a model on the server answers, with a sign of life on a terminal."""
    import stepwell

    with stepwell.Client(url) as client, progress_console.status(f"asking {name} ..."):
        return question(client.model(name))


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
    made = _ask(url, model, lambda m: m.checkpoint(pinned=pinned))
    _tell(_values(made), f"{made.id}  {made.bytes} bytes", as_json)


@app.command("list")
def list_checkpoints(model: ModelName, url: Url = None, as_json: AsJson = False) -> None:
    """List a model's checkpoints, oldest first."""
    found = _ask(url, model, lambda m: m.checkpoints())
    if as_json:
        typer.echo(json.dumps({"checkpoints": [_values(checkpoint) for checkpoint in found]}))
        return
    for checkpoint in found:
        pin = "  pinned" if checkpoint.pinned else ""
        typer.echo(f"{checkpoint.id}  {checkpoint.created}  {checkpoint.bytes} bytes{pin}")


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
        verdicts = _verify_folder(data_dir, model, checkpoint)
    elif model is None:
        raise typer.BadParameter("Name the model, or a folder with --data-dir")
    else:
        verdicts = _verify_served(url, model, checkpoint)
    if as_json:
        typer.echo(json.dumps({"checkpoints": verdicts}))
    else:
        for verdict in verdicts:
            typer.echo(f"{verdict['model']}  {verdict['id']}  {verdict['invalid'] or 'whole'}")
    if any(verdict["invalid"] for verdict in verdicts):
        raise typer.Exit(EXIT_FAILED)


def _verify_served(url: str | None, name: str, checkpoint: str | None) -> list[dict[str, Any]]:
    def all_of(model: stepwell.Model) -> list[dict[str, Any]]:
        ids = [checkpoint] if checkpoint else [each.id for each in model.checkpoints()]
        return [_verdict(name, each, partial(model.verify, each)) for each in ids]

    return _ask(url, name, all_of)


def _verify_folder(
    data_dir: Path, model: str | None, checkpoint: str | None
) -> list[dict[str, Any]]:
    from stepwell_server.storage.folders import ModelFolder

    names = [model] if model else sorted(p.parent.name for p in data_dir.glob("*/checkpoints"))
    verdicts = []
    for name in names:
        archive = ModelFolder(data_dir / name).archive
        ids = archive.ids()
        if not ids or (checkpoint and checkpoint not in ids):
            raise CheckpointNotFound(
                f"There is no checkpoint {checkpoint or ''} of a model {name!r} in {data_dir}"
            )
        for each in [checkpoint] if checkpoint else ids:
            verdicts.append(_verdict(name, each, partial(archive.verify, each)))
    if not verdicts:
        raise CheckpointNotFound(f"There is no model in {data_dir}")
    return verdicts


def _verdict(model: str, checkpoint: str, check: Callable[[], Any]) -> dict[str, Any]:
    try:
        check()
    except CheckpointInvalid as error:
        return {"model": model, "id": checkpoint, "invalid": error.message}
    return {"model": model, "id": checkpoint, "invalid": None}


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
    version = _ask(url, model, lambda m: m.restore(checkpoint))
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
    """Delete a checkpoint, unless it is pinned, or the last one that is whole."""
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
    forked = _ask(url, model, lambda m: m.fork(checkpoint, name))
    _tell({"name": forked.name}, f"created {forked.name}", as_json)


@app.command("export")
def export(
    model: ModelName,
    checkpoint: CheckpointId,
    folder: Annotated[Path, typer.Argument(help="Where its files go; made if it is not there.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Download a checkpoint: two safetensors files and the manifest."""
    import httpx
    from rich.progress import DownloadColumn, Progress
    from stepwell.endpoint import Endpoint

    from stepwell_server.storage.checkpoint import FILES

    folder.mkdir(parents=True, exist_ok=True)
    endpoint = Endpoint.find(url, None, None)
    arguments = {**endpoint.client_arguments(), **endpoint.transport_arguments()}
    bars = Progress(*Progress.get_default_columns(), DownloadColumn(), console=progress_console)
    with httpx.Client(**arguments, trust_env=endpoint.has_proxy) as client, bars:
        for name in FILES:
            path = f"/v1/models/{model}/checkpoints/{checkpoint}/files/{name}"
            _download(client, path, folder / name, bars)
    paths = [str(folder / name) for name in FILES]
    _tell({"files": paths}, "\n".join(paths), as_json)


def _download(client: httpx.Client, path: str, target: Path, bars: Progress) -> None:
    """Write what a path gives to a file, whole or not at all."""
    import httpx
    from stepwell.errors import from_problem

    temporary = target.with_name(f".{target.name}.part")
    try:
        with client.stream("GET", path) as response:
            if response.status_code != 200:
                response.read()
                raise from_problem(response.json(), response.status_code)
            nbytes = int(response.headers["content-length"])
            task = bars.add_task(target.name, total=nbytes)
            with open(temporary, "wb") as file:
                for piece in response.iter_raw():
                    file.write(piece)
                    bars.advance(task, len(piece))
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except httpx.HTTPError as error:
        raise StepwellError(
            f"The download of {target.name} broke ({type(error).__name__}); call it again"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


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
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _confirm(f"Model {model!r} takes over other arrays, and its workers are told.", yes)
    arrays: dict[str, Any] = {}
    for file in files:
        try:
            arrays |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise InvalidInput(
                f"An import is of safetensors files. {file} cannot be read as one "
                f"({type(error).__name__}); nothing changed"
            ) from None

    def take_over(target: stepwell.Model) -> int:
        parameters: dict[str, Any] = {}
        slots: dict[str, dict[str, Any]] = {}
        for name, array in arrays.items():
            slot, _, parameter = name.partition("/")
            if name in target.layout.segments:
                parameters[name] = array
            elif parameter in target.layout.segments:
                slots.setdefault(slot, {})[parameter] = array
            else:
                raise UnknownTensor(
                    f"{name!r} is neither a parameter of model {target.name!r} nor a slot of one, "
                    "such as momentum/<parameter>"
                )
        return target.import_state(parameters or None, slots or None, iterations)

    version = _ask(url, model, take_over)
    _tell({"version": version}, f"imported; the version is {version}", as_json)
