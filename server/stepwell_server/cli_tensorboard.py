"""`stepwell export tensorboard`: a model's history as event files that TensorBoard shows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from stepwell_core.errors import Conflict, StepwellError

from stepwell_server.cli_asking import ask, sign_of_life
from stepwell_server.cli_options import AsJson, ModelName, Url

if TYPE_CHECKING:  # not needed by a server that starts
    import stepwell
    from stepwell.history import Series

MOST_VERSIONS = 4000
"""Of one answer: a step has one value of each series, and an answer is thinned out beyond that."""

LOOK_EVERY_S = 2.0

app = typer.Typer(
    help="Write what a server has for other programs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def export() -> None:
    """Write what a server has for other programs."""


@app.command("tensorboard")
def tensorboard(
    model: ModelName,
    folder: Annotated[Path, typer.Argument(help="What `tensorboard --logdir` is given.")],
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's whole history, each series over the versions, into FOLDER/MODEL."""
    told = ask(url, model, lambda found: _exported(found, folder / model, follow), long=True)
    if as_json:
        typer.echo(json.dumps(told))
    else:
        typer.echo(f"{told['values']} values up to version {told['version']} in {told['folder']}")


def _exported(model: stepwell.Model, folder: Path, follow: bool) -> dict[str, Any]:
    events = EventFile(folder)
    try:
        with sign_of_life("writing"):
            events.write(model)
            while follow:
                time.sleep(LOOK_EVERY_S)
                events.write(model)
    except KeyboardInterrupt:
        if not follow:
            raise
    finally:
        events.close()
    return {"folder": str(folder), "values": events.values, "version": events.version}


class EventFile:
    """An event file of TensorBoard's, in a folder that has none yet.

    Args:
        folder: Made if it is not there.

    Attributes:
        version: The last one that is written; -1 before the first.
        values: How many are written.

    Raises:
        StepwellError: The package that writes it is not installed, or the folder cannot be used.
        Conflict: There is one already, which would be shown together with this one.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise StepwellError(
                "Event files are written by the package tensorboardX: pip install "
                "'stepwell[tensorboard]'"
            ) from None
        if next(folder.glob("events.out.tfevents.*"), None) is not None:
            raise Conflict(
                f"{folder} has event files already, and an export adds to none; choose another "
                "folder, or remove them"
            )
        try:
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            raise StepwellError(
                f"No file can be written in {folder} ({error.strerror}); choose another folder"
            ) from None
        self.version = -1
        self.values = 0

    def write(self, model: stepwell.Model) -> None:
        """Write what has happened since the last time; it is on the disk when this returns."""
        newest = int(model.describe()["version"])
        is_whole = False
        while not is_whole:
            last = self.version + MOST_VERSIONS
            is_whole = last >= newest
            found = model.history(self.version + 1, last, points=MOST_VERSIONS)
            for name, series in found.series.items():
                self._add(tag_of(name), series)
            written = [int(series.version[-1]) for series in found.series.values()]
            # A step may be made and not be in the history yet: then it comes the next time.
            self.version = max(written, default=self.version) if is_whole else last
        self._writer.flush()

    def _add(self, tag: str, series: Series) -> None:
        for version, seconds, value in zip(series.version, series.time, series.value, strict=True):
            self._writer.add_scalar(tag, float(value), int(version), float(seconds))
        self.values += len(series.version)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def tag_of(series: str) -> str:
    """Return what a series is called there; what stands before a stroke makes a group."""
    return series.replace(".", "/", 1) if series.startswith("metrics.") else f"step/{series}"
