"""`stepwell export tensorboard`: a model's history as event files that TensorBoard shows."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from stepwell_core.errors import Conflict, StepwellError

from stepwell_server.cli_asking import ask, sign_of_life
from stepwell_server.cli_interrupts import like_ctrl_c
from stepwell_server.cli_options import AsJson, ModelName, Url

if TYPE_CHECKING:  # not needed by a server that starts
    import stepwell
    from stepwell.history import Series
    from tensorboardX.proto.event_pb2 import Event

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
    with like_ctrl_c(), sign_of_life("writing"), EventFile(folder) as events:
        events.write(model)
        try:
            while follow:
                time.sleep(LOOK_EVERY_S)
                events.write(model)
        except KeyboardInterrupt:
            pass  # so it was told to end
    return {"folder": str(folder), "values": events.values, "version": events.version}


class EventFile:
    """An event file of TensorBoard's, in a folder that has none yet. A context manager.

    A block that fails before the history was written once leaves no file behind.

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
            from tensorboardX.proto.event_pb2 import Event
            from tensorboardX.record_writer import RecordWriter
        except ImportError:
            raise StepwellError(
                "Event files are written by the package tensorboardX: pip install "
                "'stepwell[tensorboard]'"
            ) from None
        self._folder = folder
        began = time.time()
        self._path = folder / f"events.out.tfevents.{began:.0f}.{socket.gethostname()}"
        with self._said_in_a_sentence():
            if next(folder.glob("events.out.tfevents.*"), None) is not None:
                raise Conflict(
                    f"{folder} has event files already, and an export adds to none; choose another "
                    "folder, or remove them"
                )
            folder.mkdir(parents=True, exist_ok=True)
            # Its SummaryWriter has a thread, and waits for ever for one that failed of a full disk.
            self._records = RecordWriter(str(self._path))
        self._header = Event(wall_time=began, file_version="brain.Event:2")
        self.version = -1
        self.values = 0
        self._incarnation = ""
        self._next = 0  # version
        self._since: float | None = None
        self._time = 0.0  # of the newest value
        self._is_whole = False

    def write(self, model: stepwell.Model) -> None:
        """Write what has happened since the last time; it is on the disk when this returns.

        Raises:
            StepwellError: The disk refuses, or what the server says.
        """
        if not self._is_whole:
            self._record(self._header)
        about = model.describe()
        newest = int(about["version"])
        if about["incarnation"] != self._incarnation:
            # After a crash it may have gone back, and makes versions again that were written.
            self._incarnation, self._next = about["incarnation"], 0
            self._since = math.nextafter(self._time, math.inf) if self.values else None
        is_whole = False
        while not is_whole:
            last = self._next + MOST_VERSIONS - 1
            is_whole = last >= newest
            found = model.history(self._next, last, since=self._since, points=MOST_VERSIONS)
            self._add(found.series)
            written = [int(series.version[-1]) for series in found.series.values()]
            self.version = max(written, default=self.version)
            # A step may be made and not be in the history yet: then it comes the next time.
            self._next = max(written, default=self._next - 1) + 1 if is_whole else last + 1
        with self._said_in_a_sentence():
            self._records.flush()
        self._is_whole = True

    def _add(self, found: Mapping[str, Series]) -> None:
        """Write series; their names as they are, since tensorboardX makes one of two."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        for name, series in found.items():
            tag = tag_of(name)
            columns = (series.version.tolist(), series.time.tolist(), series.value.tolist())
            for version, seconds, value in zip(*columns, strict=True):
                scalar = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                self._record(Event(wall_time=seconds, step=version, summary=scalar))
                self._time = max(self._time, seconds)
            self.values += len(series.version)

    def _record(self, event: Event) -> None:
        with self._said_in_a_sentence():
            self._records.write(event.SerializeToString())

    def close(self) -> None:
        """Close the file; remove it if it is not whole."""
        with contextlib.suppress(OSError):  # that it could not be written was said
            self._records.close()
        if not self._is_whole:
            self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _said_in_a_sentence(self) -> Iterator[None]:
        """Say which folder cannot be written, if that is what a block fails of."""
        try:
            yield
        except OSError as error:
            raise StepwellError(
                f"No file can be written in {self._folder} ({error.strerror}); choose another "
                "folder, or make room"
            ) from None

    def __enter__(self) -> EventFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def tag_of(series: str) -> str:
    """Return what a series is called there; what stands before a stroke makes a group."""
    return series.replace(".", "/", 1) if series.startswith("metrics.") else f"step/{series}"
