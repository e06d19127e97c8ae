"""The picture of who came and went: what it says of events, and that it is a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stepwell.history import HistoryEvent, Series
from stepwell_server.demo.chaos import Deed
from stepwell_server.demo.lanes import Stay, draw, lanes_of, stays_of


def event(time: float, kind: str, **fields: Any) -> HistoryEvent:
    """Return an event some seconds after the first."""
    return HistoryEvent(int(time * 10), 1000.0 + time, kind, 0, fields)


EVENTS = [
    event(0, "join", worker="w0", epoch=1),
    event(1, "join", worker="w10", epoch=2),
    event(2, "step", workers=["w0", "w10"]),
    event(3, "drop", worker="w10", outcome="dropped_late"),
    event(4, "leave", worker="w0", epoch=1, reason="lease_expired"),
    event(5, "join", worker="w10", epoch=3),
    event(6, "join", worker="w2", epoch=4),
    event(8, "leave", worker="w10", epoch=3, reason="closed"),
]


def test_a_stay_is_from_join_to_leave() -> None:
    """A session in the place of another ends that; one that is open lasts to the last event."""
    assert stays_of(EVENTS) == [
        Stay("w0", 0, 4, "lease_expired"),
        Stay("w10", 1, 5, "replaced"),
        Stay("w10", 5, 8, "closed"),
        Stay("w2", 6, 8, "open"),
    ]


def test_a_leave_whose_join_is_not_known_any_more_is_left_out() -> None:
    """The history has a limit."""
    assert stays_of([event(0, "leave", worker="w0", epoch=1, reason="closed")]) == []


def test_steps_and_drops_stand_on_the_lanes_of_their_workers() -> None:
    """Times count from the first event, also those of the losses and of what was done."""
    loss = Series(np.array([1, 2]), np.array([1002.0, 1007.5]), np.array([2.3, 0.1]))

    lanes = lanes_of(EVENTS, loss, [Deed(1003.5, "kill", "w0")])

    assert lanes.workers == ["w0", "w2", "w10"]
    assert lanes.steps == {"w0": [2.0], "w10": [2.0]}
    assert lanes.drops == {"w10": [3.0]}
    assert lanes.deeds == [(3.5, "kill", "w0")]
    assert lanes.times.tolist() == [2.0, 7.5]
    assert lanes.losses.tolist() == [2.3, 0.1]


def test_it_is_drawn_with_much_and_with_nothing(tmp_path: Path) -> None:
    """Both are whole PNGs, and not the same."""
    loss = Series(np.arange(50), 1000.0 + np.arange(50) / 7, np.exp(-np.arange(50) / 9.0))
    deeds = [Deed(1002.0, "stop", "w0"), Deed(1003.0, "kill", "w0"), Deed(1004.0, "add", "w9")]
    much, nothing = tmp_path / "much.png", tmp_path / "nothing.png"

    draw(much, lanes_of(EVENTS, loss, deeds), "a run")
    draw(nothing, lanes_of([], None, []), "")

    assert much.read_bytes().startswith(b"\x89PNG")
    assert nothing.read_bytes().startswith(b"\x89PNG")
    assert much.read_bytes() != nothing.read_bytes()
