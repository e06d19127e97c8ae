"""What is found of a data folder."""

from __future__ import annotations

import os

import pytest
from stepwell_server.doctor import data_folder as checks
from stepwell_server.settings import Settings
from stepwell_server.storage.folders import DataFolder


@pytest.fixture(autouse=True)
def small_disk_test(monkeypatch):
    """1 MB is enough to see that it is written."""
    monkeypatch.setattr(checks, "DISK_BYTES", 1 << 20)


def findings(path):
    """Return what is found, by check."""
    return {f.check: f for f in checks.check_data_folder(Settings.load(data_dir=path))}


def test_a_server_that_uses_the_folder_is_seen_and_not_disturbed(tmp_path):
    """It is well, and stays locked."""
    data = DataFolder(tmp_path)
    during = findings(tmp_path)["data folder"]
    still = checks.is_locked(tmp_path)
    data.release()

    assert "a server uses it" in during.found
    assert still
    assert during.state == findings(tmp_path)["data folder"].state == "ok"
    assert "a server uses it" not in findings(tmp_path)["data folder"].found


def test_a_file_in_its_place_is_told(tmp_path):
    """Nothing else is asked then."""
    path = tmp_path / "data"
    path.write_text("")

    (finding,) = findings(path).values()

    assert (finding.state, finding.found) == ("failed", f"{path} is a file")


def test_a_folder_of_somebody_else_names_the_user_and_the_command(tmp_path, monkeypatch):
    """The usual mistake with a volume of a container."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    (finding,) = findings(tmp_path).values()

    assert finding.state == "failed"
    assert f"belongs to user {os.geteuid()}" in finding.found
    assert "chown" in finding.advice


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}', "\0"])
def test_a_folder_of_another_program_is_told(tmp_path, text):
    """Whatever lies there under our name."""
    (tmp_path / "stepwell.json").write_text(text)

    assert findings(tmp_path)["data folder"].state == "failed"


def test_a_folder_with_other_files_is_told_as_a_start_would(tmp_path):
    """Somebody's home is no data folder; nothing is written into it."""
    (tmp_path / "thesis.tex").write_text("x")

    finding = findings(tmp_path)["data folder"]

    assert (finding.state, "not Stepwell's" in finding.found) == ("failed", True)
    assert "choose another with --data-dir" in finding.advice
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_little_room_is_a_warning(tmp_path, monkeypatch):
    """With what can be done."""
    monkeypatch.setattr(checks, "FREE_BYTES", 1 << 60)

    finding = findings(tmp_path)["free space"]

    assert (finding.state, "--keep-checkpoints" in finding.advice) == ("warning", True)


def test_a_slow_disk_is_a_warning(tmp_path, monkeypatch):
    """Both in what it writes and in how long a sync takes."""
    monkeypatch.setattr(checks, "disk_speed", lambda folder, nbytes: (1e6, 0.2))

    found = findings(tmp_path)

    assert (found["disk"].state, found["fsync"].state) == ("warning", "warning")
    assert "--durability everysec" in found["fsync"].advice


def test_a_disk_that_is_full_fails(tmp_path, monkeypatch):
    """An error of the disk is a finding and no traceback."""

    def full(folder, nbytes):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checks, "disk_speed", full)

    assert findings(tmp_path)["disk"].found == f"{tmp_path}: No space left on device"


def test_the_disk_is_timed_and_nothing_is_left(tmp_path):
    """Rates are larger than nothing."""
    rate, sync_s = checks.disk_speed(tmp_path, 1 << 20)

    assert rate > 0
    assert sync_s > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "state"), [("ext4", "ok"), ("nfs4", "warning"), ("overlay", "warning")]
)
def test_a_file_system_that_keeps_no_journal_is_a_warning(tmp_path, monkeypatch, kind, state):
    """On a network, or gone with the container."""
    monkeypatch.setattr(checks, "file_system_of", lambda folder: kind)

    assert findings(tmp_path)["file system"].state == state


def test_the_innermost_mount_decides(tmp_path):
    """Names with spaces too."""
    inner = tmp_path / "a b"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"x {escaped} nfs4 rw 0 0\nx / ext4 rw 0 0\nx {tmp_path} xfs rw 0 0\n")

    kinds = [checks.file_system_of(path, mounts) for path in (inner, tmp_path, tmp_path.parent)]

    assert kinds == ["nfs4", "xfs", "ext4"]
    assert "does not name" in checks.file_system_of(inner, tmp_path / "none")


def test_a_folder_that_may_not_be_looked_into_is_told(tmp_path, monkeypatch):
    """A test is run by root, too, whom nothing is hidden from."""

    def refused(path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "exists", refused)
        found = findings(tmp_path / "data")

    (finding,) = found.values()
    assert (finding.state, "Permission denied" in finding.found) == ("failed", True)
    assert "--data-dir" in finding.advice


@pytest.mark.parametrize(
    ("url", "state"), [("foo://x", "failed"), ("s3://key:secret@bucket/x", "failed")]
)
def test_a_store_that_cannot_be_is_told_and_no_secret(tmp_path, url, state):
    """As the start would say it."""
    settings = Settings.load(data_dir=tmp_path, checkpoint_store=url)
    finding = {f.check: f for f in checks.check_data_folder(settings)}["store"]

    assert finding.state == state
    assert "secret" not in finding.found + finding.advice
