"""How commands ask a server: they wait long, and show on a terminal that they do."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from stepwell_core.errors import StepwellError

if TYPE_CHECKING:  # not needed by a server that starts
    import stepwell
    from rich.progress import Progress

T = TypeVar("T")

LONG_READ_S = 3600.0
"""For an answer that comes when a checkpoint was written, read or restored, or when the one is
finished that is being written: 1 TB at 300 MB/s. A server that is not there is told after the
client's `connect_s`."""

LOOK_EVERY_S = 1.0
"""How often it is asked how far a checkpoint is; the server reads all manifests to answer."""

console = Console(stderr=True)


def has_terminal() -> bool:
    """Return whether a person looks at stderr; rich alone would believe FORCE_COLOR."""
    return sys.stderr.isatty()


def ask(url: str | None, name: str, question: Callable[[stepwell.Model], T], *, long: bool) -> T:
    """Return what a model on the server answers.

    Args:
        url: Of the server; None means the environment's, or the default.
        name: Of the model.
        question: Asked once.
        long: Whether the answer may take minutes; else the client's own time is enough.
    """
    import stepwell

    timeout = stepwell.Timeout(read_s=LONG_READ_S) if long else None
    with stepwell.Client(url, timeout=timeout) as client:
        return question(client.model(name))


@contextlib.contextmanager
def sign_of_life(sentence: str) -> Iterator[None]:
    """Show on a terminal, and nowhere else, that the block takes its time."""
    with console.status(sentence) if has_terminal() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def bars() -> Iterator[Progress]:
    """Give progress bars in bytes, which a terminal shows, and nothing else."""
    from rich.progress import DownloadColumn, Progress

    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(*columns, console=console, disable=not has_terminal()) as progress:
        yield progress


@contextlib.contextmanager
def checkpoint_bar(url: str | None, name: str) -> Iterator[None]:
    """Show on a terminal how far the checkpoint is that the block has written or read."""
    if not has_terminal():
        yield
        return
    is_over = threading.Event()
    with bars() as progress:
        arguments = (url, name, progress, is_over)
        watcher = threading.Thread(target=_watch, args=arguments, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()


def _watch(url: str | None, name: str, progress: Progress, is_over: threading.Event) -> None:
    """Move a bar until it is over, over a connection of its own with short times."""
    import stepwell

    task = progress.add_task("waiting", total=None)
    timeout = stepwell.Timeout(connect_s=2, read_s=5, retry_s=1)
    # What is wrong with the server, the call itself will tell; a bar may stand still.
    with contextlib.suppress(StepwellError), stepwell.Client(url, timeout=timeout) as client:
        model = client.model(name)
        while True:
            if (far := model.checkpoint_progress()) is not None:
                progress.update(
                    task,
                    description=far.phase,
                    completed=far.done_bytes,
                    total=far.bytes or None,
                )
            if is_over.wait(LOOK_EVERY_S):
                return
