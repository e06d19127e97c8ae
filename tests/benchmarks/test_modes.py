"""The picture of the modes shows what the policies do."""

from __future__ import annotations

from pathlib import Path

import pytest
from stepwell_core.consistency import Async, Bounded, Buffered, Consistency, Quorum, Sync

from benchmarks.modes import DIES_S, END_S, LEASE_S, SHOWN, Simulation, draw


@pytest.mark.parametrize("mode", [mode for mode, _ in SHOWN])
def test_training_goes_on_after_the_lease_of_a_dead_worker(mode: Consistency) -> None:
    """It holds nobody up for longer, and has no part in anything after its death."""
    run = Simulation(mode).to_its_end()

    assert run.steps[-1][0] > DIES_S + LEASE_S + 2
    assert not any("dies" in workers for when, workers in run.steps if when > DIES_S + LEASE_S)
    for spans in (*run.computed.values(), *run.waited.values()):
        assert all(0 <= since <= until <= END_S for since, until in spans)


def test_who_waits_for_whom() -> None:
    """Nobody without a barrier; at one, and with a bound, the fast worker; a quorum drops."""
    runs = {mode.mode: Simulation(mode).to_its_end() for mode, _ in SHOWN}

    waited = {mode: sum(b - a for a, b in run.waited.get("fast", ())) for mode, run in runs.items()}
    assert waited["async"] == waited["buffered"] == 0
    assert waited["sync"] > waited["quorum"] > 0
    assert waited["bounded"] > 0
    assert [mode for mode, run in runs.items() if run.dropped] == ["quorum"]
    stood = [when for when, _ in runs["sync"].steps if DIES_S <= when < DIES_S + LEASE_S]
    assert stood == []


def test_it_shows_every_mode() -> None:
    """A mode that is new belongs into it."""
    assert {type(mode) for mode, _ in SHOWN} == {Async, Sync, Quorum, Buffered, Bounded}


def test_it_is_drawn(tmp_path: Path) -> None:
    """As a PNG."""
    draw(tmp_path / "modes.png")

    assert (tmp_path / "modes.png").read_bytes().startswith(b"\x89PNG")
