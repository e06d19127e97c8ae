"""The `stepwell` script: hands over to the server's command line where that is installed.

The script is part of every install, and the commands behind it need the `server` extra. Without
the extra a person gets the line to type and not a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType

_NEEDED = ("fastapi", "numba", "typer", "uvicorn")

_INTERRUPTED = 130


def main() -> int:
    """Run the command line and return its exit status; 1 when the server extra is missing."""
    with quick_to_leave():
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if not missing:
            from stepwell_server.cli import main as serve_main
    if missing:
        print(
            f"stepwell: only the client is installed (missing: {', '.join(missing)}). "
            'The commands come with the server: pip install "stepwell[server]"',
            file=sys.stderr,
        )
        return 1
    try:
        return serve_main()
    except KeyboardInterrupt:
        return _INTERRUPTED


@contextmanager
def quick_to_leave() -> Iterator[None]:
    """Let Ctrl-C end this process, which is the `stepwell` command, at once and quietly.

    For the server's imports, which take most of a second: nothing is begun that would have to be
    cleared up. An exception would not do: Pydantic, for one, makes another of what is raised while
    it is read.
    """
    is_main = threading.current_thread() is threading.main_thread()
    # With `nohup` and the like nobody handles it, and that stays so.
    if not (is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)
