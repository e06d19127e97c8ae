"""What the server counts of connections that ended badly, from its start on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Numbers that only grow. Written on the event loop alone.

    Attributes:
        headers_cut: Connections that ended inside a request's header.
        bodies_cut: Connections that ended inside a request's body.
        bodies_too_slow: Bodies that stalled, or took longer than their deadline; answered 408.
        readers_aborted: Connections that were closed since their side read an answer too slowly.
        staging_refused: Bodies that no memory came free for in time; answered 503.
    """

    headers_cut: int = 0
    bodies_cut: int = 0
    bodies_too_slow: int = 0
    readers_aborted: int = 0
    staging_refused: int = 0
