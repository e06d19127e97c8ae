"""What is found of a machine."""

from __future__ import annotations

import os
import resource
from importlib import metadata

from stepwell_core.errors import NoSharedMemory
from stepwell_server import memory
from stepwell_server.doctor import machine as checks
from stepwell_server.settings import Settings


def findings(path, **settings):
    """Return what is found, by check; the last of several."""
    return {f.check: f for f in checks.check_machine(Settings.load(data_dir=path, **settings))}


def test_this_machine_is_well(tmp_path):
    """Or the other tests would not run on it."""
    assert "failed" not in {finding.state for finding in findings(tmp_path).values()}


def test_a_package_that_is_missing_fails_with_what_to_type(tmp_path, monkeypatch):
    """The others are listed all the same."""

    def version(name):
        if name == "uvloop":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)

    finding = findings(tmp_path)["versions"]

    assert (finding.state, finding.found) == ("failed", "not installed: uvloop")
    assert "pip install" in finding.advice


def test_without_sealed_memory_workers_send_tensors(tmp_path, monkeypatch):
    """A warning: it is slower, and all is kept. Who switched it off is told so."""

    def region(nbytes, **options):
        raise NoSharedMemory("There is none")

    monkeypatch.setattr(checks, "Region", region)

    assert findings(tmp_path)["shared memory"].state == "warning"
    assert findings(tmp_path, shared_memory=False)["shared memory"].found == "switched off"


def test_little_memory_and_few_files_are_warnings(tmp_path, monkeypatch):
    """With what to do."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
    monkeypatch.setattr(resource, "getrlimit", lambda what: (256, resource.RLIM_INFINITY))

    found = findings(tmp_path)

    assert (found["memory"].state, found["open files"].state) == ("warning", "warning")
    assert found["open files"].advice == "ulimit -n 65536"


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    """Each start compiles again then."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    assert "STEPWELL_CACHE_DIR" in findings(tmp_path)["kernels"].advice


def test_a_clock_that_was_set_back_is_seen(tmp_path):
    """By a checkpoint of the future."""
    checkpoint = tmp_path / "m" / "checkpoints" / "000001-v1"
    checkpoint.mkdir(parents=True)
    os.utime(checkpoint, (2e10, 2e10))

    finding = findings(tmp_path)["clock"]

    assert (finding.state, "in the future" in finding.found) == ("warning", True)
