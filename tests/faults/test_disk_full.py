"""A disk that is full: nothing changes, pulls go on, and when there is room again all is well."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
import stepwell
from stepwell.errors import DiskFull, DoesNotFit

from tests.requirements import require_tmpfs
from tests.servers import served

pytestmark = pytest.mark.full

DISK_BYTES = 24 << 20
SETTINGS = {"STEPWELL_JOURNAL_MAX_BYTES": str(1 << 30), "STEPWELL_CHECKPOINT_EVERY_S": "100000"}


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of its own, with very little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    require_tmpfs(folder, DISK_BYTES)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    """Write a file until there is no room at all."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass


def push_until_refused(worker: stepwell.Worker, gradient: dict[str, np.ndarray]) -> int:
    """Push into the room that the journal took before; returns the last version."""
    version = 1
    with contextlib.suppress(DiskFull):
        while version < 50_000:
            version = worker.push(gradient).version
    return version


@pytest.mark.parametrize("durability", ["always", "everysec"])
@pytest.mark.parametrize("rows", [100, 60_000])
def test_pushes_are_refused_and_change_nothing_while_there_is_no_room(rows, durability, small_disk):
    """The same worker goes on when there is; what was acknowledged is there after a crash."""
    ballast = small_disk / "ballast"
    gradient = {"a": -np.ones((rows, 4), np.float32)}
    zeros = {"a": np.zeros((rows, 4), np.float32)}
    flags = ("--durability", durability)
    with served(small_disk / "data", *flags, **SETTINGS) as server:
        with stepwell.Client(server.url) as client:
            model = client.create_model("m", zeros, optimizer=stepwell.SGD(1.0))
            worker = model.worker("w").open()
            worker.push(gradient)
            worker.push(gradient)  # takes room for more
            fill(ballast)

            applied = push_until_refused(worker, gradient)
            with pytest.raises(DiskFull):
                worker.push(gradient)
            full = model.pull()
            with pytest.raises(DoesNotFit):
                model.checkpoint()
            ballast.unlink()
            result = worker.push(gradient)
            checkpoint = model.checkpoint()
        server.kill()
    with (
        served(small_disk / "data", *flags, **SETTINGS) as server,
        stepwell.Client(server.url) as client,
    ):
        after = client.model("m").pull()

    assert (full.version, full["a"].min(), full["a"].max()) == (applied, applied, applied)
    assert (result.outcome, result.version, result.duplicate) == ("applied", applied + 1, False)
    assert checkpoint.version == applied + 1
    assert (after.version, after["a"].min(), after["a"].max()) == 3 * (applied + 1,)


def test_a_model_that_the_disk_has_no_room_for_is_not_created(small_disk):
    """It is refused, and leaves nothing; a smaller one of the name fits."""
    large = {"m": np.zeros(8 << 20, np.float32)}
    with (
        served(small_disk / "data", **SETTINGS) as server,
        stepwell.Client(server.url) as client,
    ):
        with pytest.raises(DoesNotFit):
            client.create_model("m", large, optimizer=stepwell.SGD(1.0))

        left = [path.name for path in (small_disk / "data").iterdir() if path.is_dir()]
        client.create_model("m", {"a": np.zeros(8, np.float32)}, optimizer=stepwell.SGD(1.0))

    assert left == []
