"""The checkpoints of one model: which are kept, which go, and what is said of damaged ones."""

from __future__ import annotations

import pytest
from stepwell_core.errors import CheckpointInvalid, CheckpointNotFound, Conflict, DiskFull
from stepwell_server.storage import checkpoint, disk
from stepwell_server.storage.archive import CheckpointArchive
from stepwell_server.storage.stores import LocalStore

from tests.server.storage.snapshots import snapshot


@pytest.fixture
def archive(tmp_path):
    """Five checkpoints."""
    archive = CheckpointArchive("m", LocalStore(tmp_path), "the folder")
    for version in range(1, 6):
        archive.write(snapshot(version), version * 10)
    return archive


def damage(tmp_path, serial, file="parameters.safetensors"):
    """Flip a bit of a checkpoint."""
    path = tmp_path / f"{serial:06d}-v{serial}" / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def versions(archive):
    """Return the versions of the checkpoints that are there."""
    return [int(name.partition("-v")[2]) for name in archive.ids()]


def test_the_newest_stay_and_those_that_are_pinned(archive):
    """The others go, oldest last to be asked for."""
    archive.pin("000002-v2", True)

    removed = archive.retain(2)

    assert sorted(removed) == ["000001-v1", "000003-v3"]
    assert versions(archive) == [2, 4, 5]


def test_one_whose_manifest_is_damaged_does_not_count_as_kept(archive, tmp_path):
    """So that enough whole ones stay; it goes when it is older than those."""
    damage(tmp_path, 5, "manifest.json")
    damage(tmp_path, 2, "manifest.json")

    archive.retain(2)

    assert versions(archive) == [3, 4, 5]


def test_a_pin_is_taken_back(archive):
    """And one of a checkpoint that is not there is refused."""
    archive.pin("000001-v1", True)
    archive.pin("000001-v1", False)
    with pytest.raises(CheckpointNotFound, match="Its newest: 000005-v5, 000004-v4"):
        archive.pin("000009-v9", True)

    archive.retain(1)

    assert versions(archive) == [5]


def test_a_pinned_one_is_not_removed_and_neither_is_the_last_whole_one(archive, tmp_path):
    """Each with what to do."""
    archive.pin("000003-v3", True)
    with pytest.raises(Conflict, match="unpin it first"):
        archive.remove("000003-v3")
    archive.pin("000003-v3", False)
    for serial in (1, 2, 4, 5):
        damage(tmp_path, serial)

    with pytest.raises(Conflict, match="write another first"):
        archive.remove("000003-v3")

    assert versions(archive) == [1, 2, 3, 4, 5]


def test_a_damaged_list_of_pins_is_an_error_and_removes_nothing(archive, tmp_path):
    """What somebody wanted to keep is not taken for unpinned."""
    (tmp_path / "pins.json").write_text("{")

    with pytest.raises(CheckpointInvalid, match=r"pins\.json"):
        archive.retain(1)

    assert versions(archive) == [1, 2, 3, 4, 5]


def test_verifying_names_the_tensor_that_is_damaged(archive, tmp_path):
    """And says how far it is meanwhile, to the last byte: headers count."""
    seen = []
    archive.verify("000004-v4", lambda *step: seen.append(step))
    damage(tmp_path, 4)

    with pytest.raises(CheckpointInvalid, match="tensor 'bias' in parameters"):
        archive.verify("000004-v4")

    assert seen[-1][0] == "verifying"
    assert 0 < seen[0][1] < seen[-1][1] == seen[-1][2]


def test_what_cannot_be_read_back_was_not_written(archive, monkeypatch):
    """The disk said that all was well."""

    def fail(*arguments):
        raise CheckpointInvalid("a flipped bit")

    monkeypatch.setattr(checkpoint, "verify", fail)
    with pytest.raises(CheckpointInvalid, match="a flipped bit"):
        archive.write(snapshot(6), 0)

    assert versions(archive) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("call", ["pwrite", "open", "make_folder", "sync", "rename"])
def test_a_full_disk_leaves_what_there_was(archive, tmp_path, monkeypatch, call):
    """Whatever call it comes from."""

    class Full(disk.System):
        pass

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    setattr(Full, call, fail)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "system", Full())
        with pytest.raises(DiskFull, match="no room for checkpoint 000006-v6"):
            archive.write(snapshot(6), 0)

    assert versions(archive) == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert archive.newest()[0].id == "000005-v5"
