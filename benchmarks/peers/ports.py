"""Free ports, for systems that must be told which to use."""

from __future__ import annotations

import contextlib
import socket


def free(count: int = 1) -> list[int]:
    """Return so many ports of this machine that nobody uses at the moment."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]
