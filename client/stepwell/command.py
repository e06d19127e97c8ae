"""The `stepwell` script: hands over to the server's command line where that is installed.

The script is part of every install, and the commands behind it need the `server` extra. Without
the extra a person gets the line to type and not a traceback.
"""

import sys
from importlib.util import find_spec

_NEEDED = ("fastapi", "numba", "typer", "uvicorn")

_INTERRUPTED = 130


def main() -> int:
    """Run the command line and return its exit status; 1 when the server extra is missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"stepwell: only the client is installed (missing: {', '.join(missing)}). "
            'The commands come with the server: pip install "stepwell[server]"',
            file=sys.stderr,
        )
        return 1
    try:
        from stepwell_server.cli import main as serve_main

        return serve_main()
    except KeyboardInterrupt:  # of somebody who did not wait for the imports
        return _INTERRUPTED
