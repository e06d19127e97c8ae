"""What earlier servers wrote is read by this one; docs/upgrades.md promises it for each format.

`golden/make_data.py` has written the folders, each with the server of its time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stepwell_server.storage.journal import format as journal_format
from stepwell_server.storage.manifest import READABLE_VERSIONS

from tests.server.registries import run

DATA = Path(__file__).parent / "golden" / "data"
FOLDERS = sorted(path.stem for path in DATA.glob("*.json"))


def nested(layout, arenas):
    """The tensors of arenas as nested lists, whose numbers are exact."""
    return {name: array.tolist() for name, array in layout.views(arenas).items()}


async def see(registry):
    """All that the file beside a folder says of it."""

    def everything(engine):
        session = engine.ledger.sessions["w0"]
        return {
            "version": engine.counters.version,
            "parameters": nested(engine.layout, engine.store.current),
            "momentum": nested(engine.layout, engine.slot("momentum")),
            "epoch": session.epoch,
            "last_sequence": session.last_sequence,
        }

    model = registry.get("m")
    return await model.read(everything), model.engine.incarnation


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("durability", ["always", "everysec", "memory"])
def test_a_folder_of_an_earlier_server_is_gone_on_with(tmp_path, name, durability):
    """Parameters, slots, versions and sessions; twice, since the first start writes it anew."""
    expected = json.loads((DATA / f"{name}.json").read_text())
    incarnation, has_journal = expected.pop("incarnation"), expected.pop("has_journal")
    folder = tmp_path / "data"
    shutil.copytree(DATA / name, folder)

    found, present = run(folder, see, is_clean=False, durability=durability)
    again, _ = run(folder, see, durability=durability)

    assert found == again == expected
    assert (present == incarnation) == has_journal  # it proves that nothing is missing


def test_there_is_a_folder_of_each_format_that_is_read():
    """Whoever adds a version adds what the last server of the one before has written."""
    checkpoints, journals = set(), set()
    for manifest in DATA.glob("*/m/checkpoints/*/manifest.json"):
        checkpoints.add(json.loads(manifest.read_bytes())["manifest"]["format_version"])
    for segment in DATA.glob("*/m/journal/*.segment"):
        head = segment.read_bytes()[:4096]
        journals.add(head[head.index(b"format_version") + len(b"format_version")])

    assert checkpoints == set(READABLE_VERSIONS)
    assert journals == {journal_format.FORMAT_VERSION}
