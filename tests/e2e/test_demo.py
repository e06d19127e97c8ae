"""The main job, end to end: real images, processes, sockets and files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

ACCURACY = 0.97
MOST_SECONDS = 60.0
KEYS = {
    "accuracy",
    "pushes",
    "pushes_per_s",
    "version",
    "seconds",
    "checkpoint",
    "picture",
    "parameters_sha256",
}


def run_demo(folder: Path, *options: str) -> dict[str, Any]:
    """Run the command as a user does and return the JSON object that is alone on stdout."""
    command = [sys.executable, "-m", "stepwell", "demo", "--json", "--folder", str(folder)]
    finished = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=200, check=False
    )
    assert finished.returncode == 0, finished.stderr
    outcome: dict[str, Any] = json.loads(finished.stdout)
    return outcome


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["async", pytest.param("sync", marks=pytest.mark.full)])
def test_four_workers_learn_digits_within_a_minute(tmp_path: Path, mode: str) -> None:
    """Both modes reach 97 % on held-out images, and leave a checkpoint and a picture."""
    outcome = run_demo(tmp_path, "--mode", mode)

    assert outcome.keys() >= KEYS
    assert outcome["accuracy"] >= ACCURACY
    assert outcome["seconds"] <= MOST_SECONDS
    assert outcome["version"] == outcome["pushes"] // (4 if mode == "sync" else 1)
    assert Path(outcome["picture"]).read_bytes().startswith(b"\x89PNG")
    parameters = load_file(Path(outcome["checkpoint"]) / "parameters.safetensors")
    assert sum(array.size for array in parameters.values()) == 50_826


@pytest.mark.full
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "mode",
    [
        "bounded",
        *(pytest.param(mode, marks=pytest.mark.full) for mode in ("async", "sync")),
        *(pytest.param(mode, marks=pytest.mark.full) for mode in ("quorum", "buffered")),
    ],
)
def test_workers_that_are_killed_stopped_and_added_learn_too(tmp_path: Path, mode: str) -> None:
    """Training neither stops nor gets worse, and a picture says who came and went."""
    outcome = run_demo(tmp_path, "--mode", mode, "--chaos", "--steps", "400")

    assert outcome["accuracy"] >= ACCURACY
    assert outcome["chaos"] == {"kill": 2, "add": 2, "stop": 2, "restart": 1}
    assert outcome["version"] >= (400 if mode in ("sync", "quorum", "buffered") else 1600)
    assert Path(outcome["chaos_picture"]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_the_other_optimizers_learn_too(tmp_path: Path, optimizer: str) -> None:
    """SGD with momentum and Adagrad reach the bar; in sync mode, where a run is the same twice."""
    outcome = run_demo(tmp_path, "--mode", "sync", "--optimizer", optimizer)

    assert outcome["accuracy"] >= ACCURACY


@pytest.mark.full
@pytest.mark.timeout(240)
def test_in_sync_mode_one_seed_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    """Gradients are reduced in worker order, so who arrives first leaves no trace."""
    options = ("--mode", "sync", "--steps", "40", "--seed", "7")

    first = run_demo(tmp_path / "first", *options)
    second = run_demo(tmp_path / "second", *options)
    other = run_demo(tmp_path / "other", "--mode", "sync", "--steps", "40", "--seed", "8")

    assert first["parameters_sha256"] == second["parameters_sha256"]
    assert first["parameters_sha256"] != other["parameters_sha256"]


@pytest.mark.parametrize("options", [("--workers", "1"), ("--no-own-workers",)])
def test_chaos_for_nobody_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    """One worker has to go on when another is killed, and workers of others are left alone."""
    command = [sys.executable, "-m", "stepwell", "demo", "--folder", str(tmp_path / "none")]

    finished = subprocess.run(
        [*command, "--chaos", *options], capture_output=True, text=True, timeout=60, check=False
    )

    assert finished.returncode == 1
    assert "--chaos" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "none").exists()


def test_an_option_out_of_range_is_a_usage_error(tmp_path: Path) -> None:
    """A wrong option ends the command with status 2 and names it, and nothing is left behind."""
    command = [sys.executable, "-m", "stepwell", "demo", "--folder", str(tmp_path / "none")]

    finished = subprocess.run(
        [*command, "--seed", "-1"], capture_output=True, text=True, timeout=60, check=False
    )

    assert finished.returncode == 2
    assert "seed" in finished.stderr
    assert not (tmp_path / "none").exists()
