"""`stepwell checkpoint ...` against a real server."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import stepwell
from safetensors.numpy import load_file, save_file

from tests import servers

PARAMETERS = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float64)}
ONES = {name: np.ones_like(array) for name, array in PARAMETERS.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that keeps many checkpoints."""
    folder = tmp_path_factory.mktemp("data")
    with servers.hosted(folder, keep_checkpoints=50) as running:
        yield running


@pytest.fixture
def model(server, request):
    """A model with two steps of momentum behind it."""
    name = f"m{abs(hash(request.node.name)) % 10**9}"
    with stepwell.Client(server.url) as client:
        made = client.create_model(name, PARAMETERS, optimizer=stepwell.SGD(0.5, momentum=0.9))
        with made.worker("w0") as worker:
            worker.push(ONES)
            worker.push(ONES)
        yield made


@pytest.fixture
def run(server):
    """Run `stepwell checkpoint ...`; return the finished process."""

    def run(*arguments, url=server.url):
        command = [sys.executable, "-m", "stepwell_server", "checkpoint", *map(str, arguments)]
        options = [] if url is None else ["--url", url]
        return subprocess.run(
            [*command, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    return run


def of(finished):
    """Return what a command printed with --json."""
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_a_checkpoint_is_written_listed_verified_pinned_and_deleted(run, model):
    """Each command says what it did, for people and for programs."""
    made = of(run("create", model.name, "--json"))

    listed = of(run("list", model.name, "--json"))["checkpoints"]
    verdicts = of(run("verify", model.name, "--json"))["checkpoints"]
    assert run("pin", model.name, made["id"]).returncode == 0
    refused = run("delete", model.name, made["id"], "--yes")
    assert run("unpin", model.name, made["id"]).returncode == 0
    asked = run("delete", model.name, made["id"])
    deleted = run("delete", model.name, made["id"], "--yes")

    assert [checkpoint["id"] for checkpoint in listed] == ["000001-v0", "000002-v2"]
    assert listed[-1] == made
    assert [verdict["invalid"] for verdict in verdicts] == [None, None]
    assert (refused.returncode, "unpin it first" in refused.stderr) == (1, True)
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True)
    assert (deleted.returncode, deleted.stdout) == (0, f"{made['id']} is deleted\n")
    assert made["id"] not in run("list", model.name).stdout


def test_a_model_goes_back_and_is_forked(run, model):
    """With --yes, since nobody is there to be asked."""
    first = of(run("list", model.name, "--json"))["checkpoints"][0]["id"]

    version = of(run("restore", model.name, first, "--yes", "--json"))["version"]
    name = of(run("fork", model.name, first, f"{model.name}-fork", "--json"))["name"]

    assert version == 3
    np.testing.assert_array_equal(model.pull()["w"], PARAMETERS["w"])
    assert name == f"{model.name}-fork"


def test_what_is_exported_is_imported_elsewhere(run, model, server, tmp_path):
    """Plain safetensors files; parameters and slots find their places by their names."""
    made = model.checkpoint()

    files = of(run("export", model.name, made.id, tmp_path / "out", "--json"))["files"]
    with stepwell.Client(server.url) as client:
        other = client.create_model(
            f"{model.name}-other", PARAMETERS, optimizer=stepwell.SGD(0.5, momentum=0.9)
        )
        run("import", other.name, *files[:2], "--iterations", 2, "--yes")
        pulled, momentum = other.pull(), other.pull(slot="momentum")
        described = other.describe()

    assert [path.rsplit("/", 1)[1] for path in files] == [
        "parameters.safetensors", "optimizer.safetensors", "manifest.json",
    ]  # fmt: skip
    np.testing.assert_array_equal(pulled["w"], model.pull()["w"])
    np.testing.assert_array_equal(momentum["b"], load_file(files[1])["momentum/b"])
    assert described["iterations"] == 2


def test_a_file_with_other_tensors_is_not_imported(run, model, tmp_path):
    """Nothing changes, and the sentence names the tensor."""
    save_file({"unknown": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")

    refused = run("import", model.name, tmp_path / "x.safetensors", "--yes")

    assert refused.returncode == 1
    assert "'unknown' is neither a parameter" in refused.stderr
    assert model.describe()["version"] == 2


def test_a_data_folder_is_verified_without_a_server(run, tmp_path):
    """Damage is named, the exit code says so, and nothing is changed."""
    with (
        servers.hosted(tmp_path) as other,
        stepwell.Client(other.url) as client,
    ):
        client.create_model("a", PARAMETERS, optimizer=stepwell.SGD(0.5))
    whole = run("verify", "--data-dir", tmp_path, url=None)
    file = next(tmp_path.glob("a/checkpoints/*/parameters.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")

    damaged = run("verify", "--data-dir", tmp_path, "--json", url=None)
    nothing = run("verify", "--data-dir", tmp_path / "none", url=None)

    assert (whole.returncode, "whole" in whole.stdout) == (0, True)
    assert damaged.returncode == 1
    assert "does not match its hash" in json.loads(damaged.stdout)["checkpoints"][0]["invalid"]
    assert (nothing.returncode, "There is no data folder" in nothing.stderr) == (1, True)


def test_a_server_that_is_not_there_is_one_sentence_and_exit_code_1(run):
    """Within seconds."""
    refused = run("list", "m", url="http://127.0.0.1:9")

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
