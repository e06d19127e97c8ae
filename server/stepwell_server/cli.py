"""The `stepwell` command."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from stepwell.command import quick_to_leave
from stepwell_core.errors import DataFolderInvalid, StepwellError

from stepwell_server import __version__, cli_checkpoints, cli_status, cli_tensorboard, cli_top
from stepwell_server.cli_bench import bench
from stepwell_server.cli_doctor import doctor
from stepwell_server.cli_options import AsJson
from stepwell_server.cli_settings import EXIT_USAGE, errors, load_settings

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="stepwell",
    help="An optimizer-as-a-service parameter server.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # or the defaults, which stand in brackets, would be taken for markup
)
token_app = typer.Typer(
    help="Make, list and revoke tokens.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(token_app, name="token")
app.add_typer(cli_checkpoints.app, name="checkpoint")
app.add_typer(cli_tensorboard.app, name="export")
cli_status.register(app)
cli_top.register(app)
app.command("doctor")(doctor)
app.command("bench")(bench)

DataDir = Annotated[
    Path, typer.Option(envvar="STEPWELL_DATA_DIR", help="The server's data folder.")
]
Role = Literal["read", "push", "admin"]


def main() -> int:
    """Run the command; returns its exit code."""
    try:
        # The name is not what was typed: completion is of `stepwell`, also by `python -m stepwell`.
        code = app(prog_name="stepwell", standalone_mode=False)  # of a typer.Exit; else None
    except typer.Abort:
        return EXIT_INTERRUPTED
    except StepwellError as error:
        errors.print(f"stepwell: {error.message}", markup=False)
        return EXIT_FAILED
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        # The words of the packages below are no help; our sentence behind them is.
        message = error.format_message().removeprefix("Invalid value: ")
        message = message.replace(": Value error, ", ": ")
        is_help = message.startswith("Usage:")  # of a command that was given nothing
        errors.print(message if is_help else f"stepwell: {message}", markup=False)
        return EXIT_USAGE
    return code or 0


@app.callback(invoke_without_command=True)
def stepwell(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """An optimizer-as-a-service parameter server."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [8700].")] = None,
    uds: Annotated[Path | None, typer.Option(help="Listen on a Unix socket instead.")] = None,
    shared_memory: Annotated[
        bool | None,
        typer.Option(
            "--shared-memory/--no-shared-memory",
            help="Exchange tensors in memory with workers on this host [yes].",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where models are kept [stepwell-data].")
    ] = None,
    durability: Annotated[
        str | None, typer.Option(help="memory, everysec or always [everysec].")
    ] = None,
    checkpoint_every_versions: Annotated[
        int | None, typer.Option(help="Write a checkpoint after so many versions [never].")
    ] = None,
    checkpoint_every_s: Annotated[
        float | None, typer.Option(help="Write a checkpoint after so many seconds [900].")
    ] = None,
    keep_checkpoints: Annotated[
        int | None, typer.Option(help="How many checkpoints are kept beside pinned ones [3].")
    ] = None,
    checkpoint_store: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix, gs:// or az:// [the data folder].")
    ] = None,
    take_over_store: Annotated[
        bool | None,
        typer.Option(
            "--take-over-store", help="Take the store of a server that never runs again [no]."
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A secret file with tokens, one a line.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    staging_bytes: Annotated[
        int | None, typer.Option(help="Memory for payloads on their way [a quarter].")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A host name to answer to; may be repeated.")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json [text].")] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error [info].")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(envvar="STEPWELL_CONFIG", help="A TOML file with the same settings."),
    ] = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C."""
    with quick_to_leave():
        from stepwell_server import logs
        from stepwell_server.serve import run

    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "uds": uds,
        "shared_memory": shared_memory,
        "data_dir": data_dir,
        "durability": durability,
        "checkpoint_every_versions": checkpoint_every_versions,
        "checkpoint_every_s": checkpoint_every_s,
        "keep_checkpoints": keep_checkpoints,
        "checkpoint_store": checkpoint_store,
        "take_over_store": take_over_store,
        "token_file": token_file,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "staging_bytes": staging_bytes,
        "allowed_hosts": tuple(allowed_host) if allowed_host else None,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings = load_settings(config, **flags)
    logs.configure(settings.log_format, settings.log_level)
    if not run(settings):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def demo(
    mode: Annotated[
        Literal["async", "sync", "quorum", "buffered", "bounded"],
        typer.Option(help="When pushes become a step."),
    ] = "async",
    optimizer: Annotated[
        Literal["sgd", "adagrad", "adam"], typer.Option(help="The update rule.")
    ] = "adam",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, help="Pushes a worker makes.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of parameters and batches.")] = 0,
    url: Annotated[str | None, typer.Option(help="Use a server that runs already.")] = None,
    model: Annotated[str, typer.Option(help="Name of the model.")] = "digits",
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete a model of that name first.")
    ] = False,
    own_workers: Annotated[
        bool, typer.Option(help="Start the workers; without, wait for `stepwell demo-worker`.")
    ] = True,
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Kill, stop and add workers meanwhile.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where everything is kept [stepwell-demo/<time>].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a network on handwritten digits through a server, with worker processes."""
    from stepwell_server.demo.run import Options, run

    options = Options(
        mode=mode,
        optimizer=optimizer,
        workers=workers,
        steps=steps,
        seed=seed,
        model=model,
        url=url,
        has_own_workers=own_workers,
        replaces=replace,
        folder=folder,
        has_chaos=chaos,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        outcome = run(options, errors)
    except KeyboardInterrupt:
        errors.print("stepwell: stopped; what there is so far is kept", markup=False)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(outcome.to_json()))
        return
    for name, value in outcome.to_json().items():
        shown = f"{value:.1%}" if name == "accuracy" else value
        typer.echo(f"{name:18} {shown}")


@app.command("demo-worker")
def demo_worker(
    url: Annotated[str | None, typer.Option(help="Of the server [STEPWELL_URL].")] = None,
    model: Annotated[str, typer.Option(help="Name of the model.")] = "digits",
    name: Annotated[str | None, typer.Option(help="Of this worker [the host's name].")] = None,
    index: Annotated[int | None, typer.Option(help="Which share of the examples.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Pushes to make.")] = 600,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples a push.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the whole run.")] = 0,
    until: Annotated[
        int | None, typer.Option(min=1, help="Version to end at, whatever --steps says.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="A line of JSON a push.")] = False,
) -> None:
    """Be one worker of a demo that `stepwell demo --no-own-workers` waits for."""
    import socket

    import stepwell

    from stepwell_server.demo.worker import Task, train, write_to

    worker = name or socket.gethostname().lower()
    task = Task(model, worker, index, steps, batch_size, seed, until)
    with stepwell.Client(url) as client:
        train(client, task, write_to(sys.stdout) if report else lambda record: None)


@token_app.command("create")
def create_token(
    role: Annotated[Role, typer.Option(help="What its bearer may do.")] = "push",
    data_dir: DataDir = Path("stepwell-data"),
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once; the data folder keeps its hash alone."""
    from stepwell_server.tokens import TokenStore

    token = TokenStore(data_dir).create(role)
    typer.echo(json.dumps({"token": token, "role": role}) if as_json else token)


@token_app.command("list")
def list_tokens(data_dir: DataDir = Path("stepwell-data"), as_json: AsJson = False) -> None:
    """List the tokens' ids and roles."""
    from stepwell_server.tokens import TokenStore

    if not data_dir.is_dir():
        raise DataFolderInvalid(f"There is no folder {data_dir}; name the server's with --data-dir")
    records = TokenStore(data_dir).load()
    if as_json:
        typer.echo(json.dumps({"tokens": [{"id": r.id, "role": r.role} for r in records]}))
        return
    for record in records:
        typer.echo(f"{record.id}  {record.role}")


@token_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="The eight digits that `token list` shows.")],
    data_dir: DataDir = Path("stepwell-data"),
    as_json: AsJson = False,
) -> None:
    """Revoke a token; a running server refuses it from now on."""
    from stepwell_server.tokens import TokenStore

    if not TokenStore(data_dir).revoke(token_id):
        errors.print(f"stepwell: there is no token {token_id!r} in {data_dir}", markup=False)
        raise typer.Exit(EXIT_FAILED)
    if as_json:
        typer.echo(json.dumps({"id": token_id, "revoked": True}))


if __name__ == "__main__":
    sys.exit(main())
