"""What a checkpoint costs training: the cut on the lane, against one copy of the slots in memory.

25.6 M parameters with Adam. The cut copies two slots, holds the parameters and begins a segment of
the journal; all else is written beside training, and its time is shown against the disk's alone.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.layout import Arenas, Layout, Tensor
from stepwell_core.optimizers import Adam
from stepwell_core.state import Snapshot
from stepwell_server.recorder import Recorder
from stepwell_server.recovery import identity_of
from stepwell_server.storage.archive import CheckpointArchive
from stepwell_server.storage.journal import Journal
from stepwell_server.storage.stores import LocalStore

from benchmarks.durability import bare_disk
from benchmarks.measure import Result, at_most, medians, ms, shown

SIZE = 25_600_000
ROUNDS = 9
INCARNATION = "1" * 32


def run(size: int = SIZE, rounds: int = ROUNDS) -> Result:
    """Measure the cut, and the writing."""
    layout = Layout([Tensor("w", (size,), "float32")])
    engine = Engine.create(Definition("m", layout, Adam(1e-3)), layout.new_arenas(), INCARNATION)
    with contextlib.ExitStack() as s:
        folder = s.enter_context(tempfile.TemporaryDirectory(prefix="stepwell-bench-"))
        path = Path(folder)
        identity = identity_of(engine.definition, INCARNATION)
        journal = Journal(path / "journal", identity, 0, "everysec", 1 << 40)
        s.callback(journal.close)
        recorder = Recorder(layout, journal)
        (path / "checkpoints").mkdir()
        archive = CheckpointArchive("m", LocalStore(path / "checkpoints"), folder)
        disk = s.enter_context(bare_disk(layout.nbytes))
        buffers, copies = (_touched(engine) for _ in range(2))

        def cut() -> Snapshot:
            recorder.rotate()
            return engine.snapshot(buffers)

        def timed_cut() -> None:
            engine.store.release(cut().parameters)

        def write() -> None:
            snapshot = cut()
            archive.write(snapshot, 0)
            archive.retain(1)
            engine.store.release(snapshot.parameters)

        def copy() -> None:
            for name, arenas in engine.store.slots.items():
                for dtype, array in arenas.items():
                    np.copyto(copies[name][dtype], array)

        def disk_alone() -> None:
            for _ in range(3):
                disk()

        seconds = medians({"cut": timed_cut, "copy": copy}, rounds)
        seconds |= medians({"write": write, "disk": disk_alone}, max(1, rounds // 3))
    return Result(
        [
            at_most(
                "the pause of a checkpoint, against one copy of the slots",
                seconds["cut"] / seconds["copy"],
                1.5,
                f"{ms(seconds['cut'])} against {ms(seconds['copy'])}",
            ),
            shown(
                "a checkpoint of 307 MB, written and read back, against the disk's own writing",
                seconds["write"] / seconds["disk"],
                f"{ms(seconds['write'])} against {ms(seconds['disk'])}",
            ),
        ],
        seconds,
    )


def _touched(engine: Engine) -> dict[str, Arenas]:
    return {name: engine.layout.new_arenas(0.0) for name in engine.store.slots}
