"""`stepwell doctor`, as it is run."""

from __future__ import annotations

import json
import sys

import pytest
from stepwell_server.cli import main
from stepwell_server.doctor import data_folder as folder_checks
from stepwell_server.settings import Settings


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command with a disk test of 1 MB; returns exit code, stdout and stderr."""
    monkeypatch.setattr(folder_checks, "DISK_BYTES", 1 << 20)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"STEPWELL_{name.upper()}", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stepwell", "doctor", "--port", "0", *arguments])
        code = main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_machine_that_is_well_is_0_and_nothing_was_changed(run, tmp_path):
    """The folder is not even made."""
    code, out, _ = run("--data-dir", str(tmp_path / "data"))

    assert code == 0
    assert "can be made" in out
    assert list(tmp_path.iterdir()) == []


def test_it_says_in_json_what_it_says_to_people(run, tmp_path):
    """Every finding with its state, and one word for all."""
    code, out, err = run("--data-dir", str(tmp_path), "--json")

    told = json.loads(out)
    assert (code, err, told["is_well"]) == (0, "", True)
    checks = {finding["check"] for finding in told["findings"]}
    assert {"versions", "data folder", "disk", "shared memory", "clock", "port"} <= checks


def test_what_is_wrong_is_1_and_says_what_to_do(run, tmp_path):
    """Here: a folder of another program, and an address for everybody without a token."""
    (tmp_path / "stepwell.json").write_text("{}")

    code, out, _ = run("--data-dir", str(tmp_path), "--host", "0.0.0.0")

    assert code == 1
    assert "is not empty and not Stepwell's" in out
    assert "-> choose another with --data-dir" in out
    assert "-> stepwell token create" in out


def test_a_setting_that_cannot_be_is_2(run, tmp_path):
    """As `stepwell serve` says it."""
    code, out, err = run("--data-dir", str(tmp_path), "--port", "70000")

    assert (code, out) == (2, "")
    assert err.startswith("stepwell: port: ")
