"""A data folder is verified without a server: all its models, and nothing is changed."""

from __future__ import annotations

import os

import pytest
from rich.progress import Progress
from stepwell_core.errors import (
    CheckpointNotFound,
    DataFolderInvalid,
    InvalidName,
    ModelNotFound,
)
from stepwell_server.cli_verify import Verdict, verify_folder
from stepwell_server.storage.folders import DataFolder

from tests.server.storage.snapshots import snapshot


@pytest.fixture
def data_dir(tmp_path):
    """A data folder with the models a, b and c, of a checkpoint each."""
    path = tmp_path / "data"
    data = DataFolder(path)
    for name in ("a", "b", "c"):
        model = data.new_model(name)
        model.create()
        model.archive.write(snapshot(1, name=name), 0)
        model.show()
    data.release()
    return path


def checkpoint_of(data_dir, name):
    """Return the folder of a model's only checkpoint."""
    [path] = (data_dir / name / "checkpoints").iterdir()
    return path


def image(folder):
    """Return all that is below a folder, with times, and the content of files."""
    return {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    }


def test_a_model_without_checkpoints_is_told_beside_the_others(data_dir):
    """It is not whole, and hides no other."""
    for file in checkpoint_of(data_dir, "a").iterdir():
        file.unlink()
    checkpoint_of(data_dir, "a").rmdir()

    first, *others = verify_folder(data_dir, None, None)

    assert (first.model, first.id) == ("a", None)
    assert "there is no checkpoint of it here" in first.invalid
    assert others == [Verdict("b", "000001-v1", None), Verdict("c", "000001-v1", None)]


def test_a_model_whose_folder_of_checkpoints_is_gone_is_told_too(data_dir):
    """Half-deleted is not whole."""
    (data_dir / "b" / "checkpoints").rename(data_dir / "b" / "old")

    verdicts = verify_folder(data_dir, None, None)

    assert [(each.model, each.invalid is None) for each in verdicts] == [
        ("a", True), ("b", False), ("c", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "file", ["parameters.safetensors", "optimizer.safetensors", "manifest.json"]
)
def test_damage_is_told_with_its_place(data_dir, file):
    """In any of a checkpoint's files; the others are read all the same."""
    path = checkpoint_of(data_dir, "b") / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)

    verdicts = verify_folder(data_dir, None, None)

    assert [each.model for each in verdicts if each.invalid] == ["b"]
    assert file.partition(".")[0] in verdicts[1].invalid


def test_what_a_process_left_half_made_is_no_model(data_dir):
    """Nor what ext4 keeps."""
    for name in (".tmp-1", ".trash-1", "lost+found"):
        (data_dir / name / "checkpoints").mkdir(parents=True)

    assert [each.model for each in verify_folder(data_dir, None, None)] == ["a", "b", "c"]


def test_nothing_is_changed_and_a_running_server_is_no_hindrance(data_dir):
    """No lock is taken, no leftover removed."""
    (data_dir / ".tmp-1").mkdir()
    server = DataFolder(data_dir)
    (data_dir / ".tmp-2").mkdir()
    before = image(data_dir)

    verify_folder(data_dir, None, None)

    assert image(data_dir) == before
    server.release()


def test_one_model_or_one_checkpoint_is_verified_alone(data_dir):
    """What is not there is an error of its own."""
    only = [Verdict("b", "000001-v1", None)]

    assert verify_folder(data_dir, "b", None) == only
    assert verify_folder(data_dir, "b", "000001-v1") == only
    with pytest.raises(CheckpointNotFound, match="no checkpoint '000002-v1'"):
        verify_folder(data_dir, "b", "000002-v1")
    with pytest.raises(ModelNotFound, match="no model 'd'"):
        verify_folder(data_dir, "d", None)
    with pytest.raises(InvalidName):
        verify_folder(data_dir, "../data/b", None)


def test_a_folder_that_is_not_a_servers_is_refused(data_dir, tmp_path):
    """Even if there is something like a model in it; and nothing is written."""
    os.unlink(data_dir / "stepwell.json")
    empty, newer = tmp_path / "empty", tmp_path / "newer"
    empty.mkdir()
    newer.mkdir()
    (newer / "stepwell.json").write_text('{"format": "stepwell-data", "format_version": 99}')

    with pytest.raises(DataFolderInvalid, match="not Stepwell's"):
        verify_folder(data_dir, None, None)
    with pytest.raises(DataFolderInvalid, match="format version 99"):
        verify_folder(newer, None, None)
    for path in (empty, tmp_path / "none", newer / "stepwell.json"):
        with pytest.raises(DataFolderInvalid, match="There is no data folder"):
            verify_folder(path, None, None)
    assert not (data_dir / "stepwell.json").exists()
    assert list(empty.iterdir()) == []


def test_a_data_folder_without_models_is_told(tmp_path):
    """To find nothing is not to find all whole."""
    DataFolder(tmp_path).release()

    with pytest.raises(ModelNotFound, match="There is no model in"):
        verify_folder(tmp_path, None, None)


def test_a_bar_says_how_far_each_checkpoint_is(data_dir):
    """To its end: those who read hundreds of GB see that it moves."""
    with Progress(disable=True) as progress:
        verdicts = verify_folder(data_dir, None, None, progress)
        tasks = list(progress.tasks)

    read = [f"{each.model} {each.id}" for each in verdicts if each.id is not None]
    assert [task.description for task in tasks] == read
    assert all(0 < task.completed == task.total for task in tasks)
