"""`stepwell checkpoint ...` against a real server."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import stepwell
from safetensors.numpy import load_file, save_file
from stepwell_server import cli
from stepwell_server.storage import checkpoint
from stepwell_server.storage.manifest import FILES

from tests import servers
from tests.client.misbehaving import Misbehaving, response, says

PARAMETERS = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float64)}
ONES = {name: np.ones_like(array) for name, array in PARAMETERS.items()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The server's data folder."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(data_dir):
    """A server that keeps many checkpoints."""
    with servers.hosted_aside(data_dir, keep_checkpoints=50) as running:
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


@dataclass
class Finished:
    """A command that has ended, under the names of `subprocess`."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(server, monkeypatch, capsys):
    """Run `stepwell checkpoint ...` in this process, without a terminal."""

    def run(*arguments, url=server.url):
        options = [] if url is None else ["--url", url]
        command = ["stepwell", "checkpoint", *map(str, arguments), *options]
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capsys.readouterr()
        return Finished(cli.main(), *capsys.readouterr())

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
    needed = run("delete", model.name, made["id"], "--yes")
    assert run("create", model.name).returncode == 0
    asked = run("delete", model.name, made["id"])
    deleted = run("delete", model.name, made["id"], "--yes")

    assert [checkpoint["id"] for checkpoint in listed] == ["000001-v0", "000002-v2"]
    assert listed[-1] == made
    assert [verdict["invalid"] for verdict in verdicts] == [None, None]
    assert (refused.returncode, "unpin it first" in refused.stderr) == (1, True)
    assert (needed.returncode, "write another first" in needed.stderr) == (1, True)
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True)
    assert asked.stderr.startswith("stepwell: Checkpoint")
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


def test_a_tensor_that_is_in_two_files_is_not_imported(run, model, tmp_path):
    """None of them is the last word; both files are named, and nothing changes."""
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({"w": ONES["w"], "b": ONES["b"]}, files[0])
    save_file({"w": PARAMETERS["w"]}, files[1])

    refused = run("import", model.name, *files, "--yes")

    assert refused.returncode == 1
    assert f"Tensor 'w' is in {files[0]} and in {files[1]}" in refused.stderr
    assert model.describe()["version"] == 2


def damage_manifest(data_dir, model, checkpoint_id):
    """Cut the last byte off a checkpoint's manifest."""
    path = data_dir / model.name / "checkpoints" / checkpoint_id / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1])


def test_a_checkpoint_with_a_damaged_manifest_is_listed_and_fails_a_verification(
    run, model, data_dir
):
    """It is named with the reason, beside those that are whole."""
    first, second = (entry.id for entry in (model.checkpoint(), model.checkpoint(pinned=True)))
    damage_manifest(data_dir, model, second)

    listed, lines = run("list", model.name, "--json"), run("list", model.name).stdout.splitlines()
    verified = run("verify", model.name)
    as_json = run("verify", model.name, "--json")
    alone, whole = run("verify", model.name, second), run("verify", model.name, first)

    entries = {entry["id"]: entry for entry in of(listed)["checkpoints"]}
    assert (entries[first]["invalid"], entries[second]["version"]) == (None, 2)
    assert "manifest does not match its hash" in entries[second]["invalid"]
    assert lines[-1].startswith(f"{second}  Checkpoint {second}: the manifest does not match")
    assert lines[-1].endswith("  pinned")
    assert [verified.returncode, as_json.returncode, alone.returncode] == [1, 1, 1]
    assert f"{model.name}  {first}  whole" in verified.stdout
    assert f"{model.name}  {second}  Checkpoint {second}: the manifest" in verified.stdout
    assert [verdict["id"] for verdict in json.loads(as_json.stdout)["checkpoints"]] == [*entries]
    assert whole.returncode == 0


def test_a_checkpoint_that_goes_while_others_are_verified_is_no_damage(run, model, monkeypatch):
    """Retention may take it; one that was asked for by its name is missed."""
    made, real = model.checkpoint(), stepwell.Model.checkpoints
    gone = stepwell.Checkpoint("000099-v9", 9, "", 0)
    monkeypatch.setattr(stepwell.Model, "checkpoints", lambda self: [*real(self), gone])

    verified, named = run("verify", model.name, "--json"), run("verify", model.name, gone.id)

    assert of(verified)["checkpoints"][-1]["id"] == made.id
    assert (named.returncode, f"no checkpoint '{gone.id}'" in named.stderr) == (1, True)


LONG = ["create", "verify", "restore", "pin", "unpin", "fork", "delete", "import"]


@pytest.mark.parametrize("command", [*LONG, "list"])
def test_what_may_take_minutes_is_waited_for(run, model, monkeypatch, tmp_path, command):
    """All that reads or writes a checkpoint, or waits for one; a list has the client's time."""
    made, timeouts = model.checkpoint(), []
    save_file({**PARAMETERS}, tmp_path / "x.safetensors")
    rest = {
        "create": [], "list": [], "fork": [made.id, f"{model.name}-fork"],
        "import": [tmp_path / "x.safetensors", "--yes"],
        "restore": [made.id, "--yes"], "delete": ["000001-v0", "--yes"],
    }.get(command, [made.id])  # fmt: skip

    class Noted(stepwell.Client):
        def __init__(self, url, *, timeout):
            timeouts.append(timeout)
            super().__init__(url, timeout=timeout)

    monkeypatch.setattr(stepwell, "Client", Noted)

    assert run(command, model.name, *rest).returncode == 0
    assert [timeout and timeout.read_s for timeout in timeouts] == [
        3600 if command in LONG else None
    ]


def test_without_a_terminal_nothing_is_shown_but_the_result(run, model, tmp_path, monkeypatch):
    """Neither bars nor signs of life, whatever the environment says of colors."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")

    created = run("create", model.name)
    exported = run("export", model.name, "000001-v0", tmp_path / "out")
    verified = run("verify", model.name)

    assert [each.returncode for each in (created, exported, verified)] == [0, 0, 0]
    assert [each.stderr for each in (created, exported, verified)] == ["", "", ""]


def seen_on_a_terminal(server, goes_on, words, *arguments):
    """The exit code and stdout of a command that may go on when a terminal shows some words."""
    command = [sys.executable, "-m", "stepwell_server", "checkpoint", *arguments]
    terminal, its_end = pty.openpty()
    with subprocess.Popen(
        [*command, "--url", server.url],
        stdout=subprocess.PIPE,
        stderr=its_end,
        text=True,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    ) as process:
        try:
            shown = b""
            while not all(word in shown for word in words):
                assert select.select([terminal], [], [], servers.DEADLINE_S)[0], shown
                shown += os.read(terminal, 1 << 16)
        finally:
            goes_on.set()
        output, _ = process.communicate(timeout=servers.DEADLINE_S)
        os.close(its_end)
        os.close(terminal)
    return process.returncode, output


def test_a_terminal_shows_how_far_a_checkpoint_is(server, model, monkeypatch):
    """A bar in bytes on stderr, while the checkpoint waits to be read back; stdout stays clean."""
    goes_on, verify = threading.Event(), checkpoint.verify

    def held(*arguments):
        assert goes_on.wait(servers.DEADLINE_S)
        return verify(*arguments)

    monkeypatch.setattr(checkpoint, "verify", held)

    seen = seen_on_a_terminal(server, goes_on, (b"writing", b"96/96 bytes"), "create", model.name)

    size = model.checkpoints()[1].bytes
    assert seen == (0, f"000002-v2  {size} bytes\n")


@pytest.mark.parametrize(
    ("command", "function", "phase"),
    [("verify", "verify", b"verifying"), ("restore", "read", b"reading")],
)
def test_a_terminal_shows_how_far_a_checkpoint_was_read(
    server, model, monkeypatch, command, function, phase
):
    """The same bar for who has one verified or goes back to it; afterwards none is under way."""
    goes_on, read = threading.Event(), getattr(checkpoint, function)

    def held(store, checkpoint_id, progress):
        def told(*far):
            progress(*far)
            assert goes_on.wait(servers.DEADLINE_S)

        return read(store, checkpoint_id, told)

    monkeypatch.setattr(checkpoint, function, held)
    options = ["--yes"] if command == "restore" else []

    returncode, _ = seen_on_a_terminal(
        server, goes_on, (phase, b" bytes"), command, model.name, "000001-v0", *options
    )

    assert returncode == 0
    assert model.checkpoint_progress() is None


def test_an_export_of_what_is_not_there_leaves_nothing_behind(run, model, tmp_path):
    """Neither the folder nor those above it."""
    unknown = run("export", model.name, "000099-v9", tmp_path / "a" / "b")
    elsewhere = run("export", "no-such-model", "000001-v0", tmp_path / "a")
    nobody = run("export", model.name, "000001-v0", tmp_path / "a", url="http://127.0.0.1:9")

    assert [each.returncode for each in (unknown, elsewhere, nobody)] == [1, 1, 1]
    assert "no checkpoint '000099-v9'" in unknown.stderr
    assert "There is no model 'no-such-model'" in elsewhere.stderr
    assert "cannot be reached" in nobody.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_export_replaces_nothing(run, model, tmp_path):
    """Neither a file where the folder is to be, nor one of an earlier export."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("mine")

    onto_a_file = run("export", model.name, "000001-v0", tmp_path / "file")
    below_a_file = run("export", model.name, "000001-v0", tmp_path / "file" / "x")
    beside = run("export", model.name, "000001-v0", tmp_path / "old")

    for refused in (onto_a_file, below_a_file, beside):
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "Not a directory" in onto_a_file.stderr
    assert "manifest.json exists already" in beside.stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["manifest.json"]


def test_an_export_goes_into_a_folder_with_other_things(run, model, tmp_path):
    """Also into the one where one is."""
    (tmp_path / "notes.txt").write_text("mine")

    exported = run("export", model.name, "000001-v0", tmp_path)

    assert exported.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json", "notes.txt", "optimizer.safetensors", "parameters.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model_name", "checkpoint_id"),
    [("../m", "000001-v0"), ("m", "../../x"), ("m", "a?b#c"), ("m%2f..", "000001-v0"), ("m", "")],
)
def test_a_name_never_becomes_a_path_of_another_resource(run, tmp_path, model_name, checkpoint_id):
    """It is refused here; the server is not asked."""
    refused = run("export", model_name, checkpoint_id, tmp_path / "out", url="http://127.0.0.1:9")

    assert (refused.returncode, "name has 1 to 64 lower-case letters" in refused.stderr) == (
        1,
        True,
    )


@pytest.mark.parametrize("name", FILES)
def test_an_export_of_a_damaged_checkpoint_is_refused(run, model, data_dir, tmp_path, name):
    """Whichever file has a flipped bit; who can export need not be allowed to verify."""
    made = model.checkpoint()
    path = data_dir / model.name / "checkpoints" / made.id / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)

    refused = run("export", model.name, made.id, tmp_path / "out")

    assert refused.returncode == 1
    assert f"Checkpoint {made.id}: " in refused.stderr
    assert list(tmp_path.iterdir()) == []


OCTETS = "application/octet-stream"


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (response(b"half", media_type=OCTETS)[:-1], "parameters.safetensors did not arrive"),
        (response(b"oops", 502, "text/html"), "Something in between answered 502"),
        (response(b"oops", 200, "text/html"), "Expected a Stepwell server"),
        (response(b"{}", 200, "application/json"), "Expected a file of a checkpoint"),
    ],
)
def test_a_download_that_breaks_or_is_something_else_leaves_nothing(run, tmp_path, answer, match):
    """A sentence, and no part of a file."""
    with Misbehaving(says(answer)) as other:
        refused = run("export", "m", "000001-v0", tmp_path / "out", url=other.url)

    assert (refused.returncode, match in refused.stderr) == (1, True), refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_is_verified_without_a_server(run, model, data_dir):
    """All its models or one; damage is named, and the exit code says so."""
    made = model.checkpoint()
    whole = run("verify", model.name, "--data-dir", data_dir, url=None)
    damage_manifest(data_dir, model, made.id)

    damaged = run("verify", model.name, "--data-dir", data_dir, "--json", url=None)
    alone = run("verify", model.name, "000001-v0", "--data-dir", data_dir, url=None)
    nothing = run("verify", "--data-dir", data_dir / "none", url=None)
    both = run("verify", "--data-dir", data_dir)

    assert (whole.returncode, whole.stdout.count("whole")) == (0, 2)
    assert damaged.returncode == 1
    assert "does not match its hash" in json.loads(damaged.stdout)["checkpoints"][1]["invalid"]
    assert (alone.returncode, alone.stdout) == (0, f"{model.name}  000001-v0  whole\n")
    assert (nothing.returncode, "There is no data folder" in nothing.stderr) == (1, True)
    assert (both.returncode, "--data-dir or --url" in both.stderr) == (2, True)


def test_a_server_that_is_not_there_is_one_sentence_and_exit_code_1(run):
    """Within seconds."""
    refused = run("list", "m", url="http://127.0.0.1:9")

    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
