"""The data folder: ours, or not touched."""

from __future__ import annotations

import errno
import json
import os

import pytest
import structlog
from stepwell_core.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    Conflict,
    DataFolderInvalid,
    InvalidName,
)
from stepwell_server.storage import disk
from stepwell_server.storage.folders import DataFolder
from stepwell_server.tokens import TokenStore

from tests.server.storage.snapshots import assert_holds, snapshot


@pytest.fixture
def data(tmp_path):
    """A data folder that is in use."""
    folder = DataFolder(tmp_path / "data")
    yield folder
    folder.release()


@pytest.fixture
def model(data):
    """A model with two checkpoints."""
    folder = data.new_model("m")
    folder.create()
    folder.archive.write(snapshot(1, seed=1), 0)
    folder.show()
    folder.archive.write(snapshot(2, seed=2), 0)
    return folder


def damage(model, checkpoint_id):
    """Flip a bit of a checkpoint's parameters."""
    path = model.checkpoints_path / checkpoint_id / "parameters.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_new_folder_is_made_and_known_again(tmp_path):
    """With its parents."""
    path = tmp_path / "a" / "b"

    DataFolder(path).release()
    DataFolder(path).release()

    assert json.loads((path / "stepwell.json").read_bytes()) == {
        "format": "stepwell-data",
        "format_version": 1,
    }


def test_a_folder_with_tokens_alone_or_a_new_volume_is_taken(tmp_path):
    """Tokens may be made before the first start, and ext4 has a folder of its own."""
    TokenStore(tmp_path).create("admin")
    (tmp_path / "lost+found").mkdir()

    folder = DataFolder(tmp_path)

    assert folder.models() == []
    folder.release()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("notes.txt", "x", "not empty and not Stepwell's"),
        ("stepwell.json", "{", "not empty and not Stepwell's"),
        ("stepwell.json", "[]", "not empty and not Stepwell's"),
        ("stepwell.json", '{"format": "other"}', "not empty and not Stepwell's"),
        ("stepwell.json", '{"format": "stepwell-data", "format_version": 2}', "format version 2"),
    ],
)
def test_a_foreign_or_newer_folder_is_refused_and_not_touched(tmp_path, name, content, match):
    """Nobody's thesis becomes a data folder by a wrong path."""
    (tmp_path / name).write_text(content)
    (tmp_path / ".tmp-thesis").write_text("years")

    with pytest.raises(DataFolderInvalid, match=match):
        DataFolder(tmp_path)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: content,
        ".tmp-thesis": "years",
    }


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    """With a sentence."""
    (tmp_path / "file").write_text("x")

    for path in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(DataFolderInvalid, match="cannot be used"):
            DataFolder(path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    """With a sentence that names it."""
    if os.geteuid() == 0:
        pytest.skip("root may write to read-only folders")
    DataFolder(tmp_path).release()
    (tmp_path / ".lock").unlink()
    tmp_path.chmod(0o500)

    try:
        with pytest.raises(DataFolderInvalid, match="cannot be written"):
            DataFolder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_disk_without_room_is_refused_and_leaves_the_folder_to_others(tmp_path, monkeypatch):
    """With a sentence; the next start, when there is room, finds a folder of ours."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk.system, "pwrite", full)
        patch.setattr(os, "write", full)
        with pytest.raises(DataFolderInvalid, match=r"cannot be used \(No space left on device"):
            DataFolder(tmp_path)

    DataFolder(tmp_path).release()


def test_a_folder_in_use_is_refused(data):
    """One server at a time."""
    with pytest.raises(DataFolderInvalid, match="in use by another server"):
        DataFolder(data.path)


def test_what_a_crash_left_half_written_is_removed(data, model):
    """In the data folder at once, in a model's when it is recovered."""
    data.release()
    (data.path / ".tmp-model" / "checkpoints").mkdir(parents=True)
    (data.path / ".trash-model").mkdir()
    (model.path / ".tmp-file").write_text("x")
    (model.checkpoints_path / ".tmp-checkpoint").mkdir()
    (model.checkpoints_path / ".trash-checkpoint").mkdir()

    again = DataFolder(data.path)
    for folder in again.models():
        folder.prepare()

    assert [folder.name for folder in again.models()] == ["m"]
    assert [path.name for path in model.path.iterdir()] == ["checkpoints"]
    assert sorted(p.name for p in model.checkpoints_path.iterdir()) == ["000001-v1", "000002-v2"]
    again.release()


def test_a_new_model_is_out_of_sight_until_it_is_whole(data):
    """A crash in between leaves no model that cannot be recovered."""
    folder = data.new_model("m")
    folder.create()
    folder.archive.write(snapshot(), 0)
    before = [path.name for path in data.path.iterdir() if not path.name.startswith(".")]

    folder.show()

    assert before == ["stepwell.json"]
    assert [shown.name for shown in data.models()] == ["m"]
    assert_holds(folder.archive.newest()[1], snapshot())


@pytest.mark.parametrize("name", ["..", "a/b", "", ".tmp-1", "tokens.json", "stepwell.json"])
def test_no_name_becomes_a_path_unchecked(data, name):
    """Nor that of a file which the data folder has."""
    with pytest.raises(InvalidName):
        data.new_model(name)


def test_the_newest_whole_checkpoint_is_taken_and_a_damaged_one_complained_of(model):
    """Falling back is loud: the log has an error that names the checkpoint."""
    damage(model, "000002-v2")

    with structlog.testing.capture_logs() as logs:
        manifest, state = model.archive.newest()

    assert manifest.id == "000001-v1"
    assert_holds(state, snapshot(1, seed=1))
    assert [(entry["log_level"], entry["checkpoint"]) for entry in logs] == [("error", "000002-v2")]


def test_without_any_whole_checkpoint_there_is_nothing_to_start_from(model):
    """A fresh start over unreadable ones would lose them silently."""
    damage(model, "000001-v1")
    damage(model, "000002-v2")

    with pytest.raises(CheckpointInvalid, match=r"no checkpoint that is whole \(of 2\)"):
        model.archive.newest()


def test_numbers_go_on_after_the_largest(model):
    """Order is that of the number and not of the text."""
    for version in range(3, 12):
        model.archive.write(snapshot(version), 0)
    (model.checkpoints_path / "1000000-v99").mkdir()

    ids = model.archive.ids()

    assert ids[0] == "000001-v1"
    assert ids[-2:] == ["000011-v11", "1000000-v99"]
    assert model.archive.write(snapshot(100), 0).id == "1000001-v100"


def test_the_last_whole_checkpoint_is_not_removed(model):
    """A damaged one beside it does not count."""
    damage(model, "000001-v1")

    with pytest.raises(Conflict, match="write another first"):
        model.archive.remove("000002-v2")
    model.archive.remove("000001-v1")

    assert model.archive.ids() == ["000002-v2"]


def test_a_checkpoint_of_another_name_is_not_found(model):
    """Neither a path, nor something that is no checkpoint."""
    for name in ("000003-v3", "..", "../m/000001-v1", "000001-v1\n", ""):
        with pytest.raises(CheckpointNotFound):
            model.archive.read(name)


def test_a_clean_stop_is_remembered_until_it_is_forgotten(model):
    """Once."""
    assert model.clean_stop() is None
    model.mark_clean_stop("000002-v2")
    assert model.clean_stop() == "000002-v2"

    model.forget_clean_stop()
    model.forget_clean_stop()

    assert model.clean_stop() is None


def test_nothing_is_written_to_a_model_that_was_removed(model):
    """A checkpoint that comes too late does not bring its folder back."""
    model.remove()

    with pytest.raises(FileNotFoundError):
        model.archive.write(snapshot(), 0)

    assert not model.path.exists()
    assert model.archive.ids() == []
