"""Checkpoints: written, listed, downloaded, restored, deleted."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from safetensors.numpy import load
from stepwell_server.storage import checkpoint
from stepwell_server.storage.archive import CheckpointArchive

from tests.server.calls import (
    MOMENTUM,
    Worker,
    assert_problem,
    create,
    filled,
    image,
    pull,
)
from tests.servers import DEADLINE_S


@pytest.fixture
def path(http):
    """A model with a slot, after two pushes, with a checkpoint after the first."""
    path = create(http, optimizer=MOMENTUM)
    worker = Worker(http, path)
    worker.push(2.0)
    assert http.post(f"{path}/checkpoints").status_code == 201
    worker.push(2.0)
    return path


def ids(http, path) -> list[str]:
    """Return the names of all checkpoints, oldest first."""
    return [entry["id"] for entry in http.get(f"{path}/checkpoints").json()["checkpoints"]]


def folder_of(server, path):
    """Return where the server keeps a model."""
    return server.application.registry.get(path.rpartition("/")[2]).folder.path


def test_a_checkpoint_says_what_it_is(http, path):
    """In the answer, in the list, and alone with its manifest."""
    created = http.post(f"{path}/checkpoints").json()

    assert created["version"] == 2
    assert created["id"] == "000003-v2"
    assert created["incarnation"] == http.get(path).json()["incarnation"]
    assert http.get(f"{path}/checkpoints").json()["checkpoints"][-1] == created
    alone = http.get(f"{path}/checkpoints/{created['id']}").json()
    manifest = alone.pop("manifest")
    assert {**alone, "pinned": False} == created
    assert manifest["definition"]["tensors"] == http.get(path).json()["tensors"]
    assert set(manifest["hashes"]) == {"parameters.safetensors", "optimizer.safetensors"}


def test_the_files_of_a_checkpoint_are_plain_safetensors(http, path):
    """Names are the tensors' own; slots have theirs before them."""
    checkpoint = f"{path}/checkpoints/{ids(http, path)[1]}"

    parameters = load(http.get(f"{checkpoint}/files/parameters.safetensors").content)
    slots = load(http.get(f"{checkpoint}/files/optimizer.safetensors").content)
    manifest = json.loads(http.get(f"{checkpoint}/files/manifest.json").content)

    assert {name: array.flat[0] for name, array in parameters.items()} == {
        "dense/kernel": 0.0,
        "bias": 0.0,
    }
    assert set(slots) == {"momentum/dense/kernel", "momentum/bias"}
    assert manifest["manifest"]["counters"]["version"] == 1


@pytest.mark.parametrize(
    "file", ["other", "..%2Fmanifest.json", "%2Fetc%2Fpasswd", "manifest.json%00", "MANIFEST.JSON"]
)
def test_no_other_file_can_be_downloaded(http, path, file):
    """The names of files are a closed list."""
    answer = http.get(f"{path}/checkpoints/{ids(http, path)[0]}/files/{file}")

    assert answer.status_code == 404
    assert answer.json()["code"] in ("checkpoint_not_found", "route_not_found")


@pytest.mark.parametrize("checkpoint", ["000009-v0", "latest", "%2e%2e", "000001-v0%0a", ".tmp-1"])
def test_a_checkpoint_that_does_not_exist_is_404(http, path, checkpoint):
    """For every call."""
    place = f"{path}/checkpoints/{checkpoint}"

    answers = [
        http.get(place),
        http.delete(place),
        http.post(f"{place}/restore"),
        http.get(f"{place}/files/manifest.json"),
    ]

    assert {answer.status_code for answer in answers} <= {404, 405}


def test_restoring_brings_back_everything_of_that_moment(http, path):
    """Parameters, slots and sessions; a new incarnation, and a version that never was before."""
    before = http.get(path).json()

    cut = http.post(f"{path}/checkpoints/{ids(http, path)[1]}/restore").json()

    assert (pull(http, path)["bias"] == 0.0).all()
    slot = http.get(f"{path}/parameters", params={"slot": "momentum"}).json()["parameters"]
    assert slot["bias"] == [-1.0] * 4
    assert cut["version"] == before["version"] + 1
    assert cut["incarnation"] not in (before["incarnation"], None)
    after = http.get(path).json()
    assert (after["version"], after["incarnation"]) == (cut["version"], cut["incarnation"])
    assert after["iterations"] == 1
    assert http.get(f"{path}/workers").json()["workers"][0]["last_sequence"] == 0
    newest = http.get(f"{path}/checkpoints").json()["checkpoints"][-1]
    assert newest["incarnation"] == cut["incarnation"]


def test_training_goes_on_after_restoring_as_it_would_have_before(http, path):
    """The same push has the same effect, bit by bit."""
    as_it_was = pull(http, path)
    http.post(f"{path}/checkpoints/{ids(http, path)[1]}/restore")

    Worker(http, path).push(2.0)

    assert {n: a.tobytes() for n, a in pull(http, path).items()} == {
        n: a.tobytes() for n, a in as_it_was.items()
    }


def test_a_damaged_checkpoint_is_listed_with_its_reason_and_not_restored(http, server, path):
    """All or nothing: the model stays as it is."""
    damaged = ids(http, path)[1]
    file = folder_of(server, path) / "checkpoints" / damaged / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    manifest = folder_of(server, path) / "checkpoints" / ids(http, path)[0] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    before = image(http, path)

    answer = http.post(f"{path}/checkpoints/{damaged}/restore")
    listed = http.get(f"{path}/checkpoints").json()["checkpoints"]

    document = assert_problem(answer, 500, "checkpoint_invalid")
    assert "does not match its hash" in document["detail"]
    assert image(http, path) == before
    assert "manifest" in listed[0]["invalid"]
    assert listed[0]["version"] == 0
    assert "invalid" not in listed[1]


def test_a_checkpoint_that_goes_while_a_list_is_made_is_left_out(http, path, monkeypatch):
    """Retention may remove it between its name and its manifest; the others are listed."""
    there, ids_of = ids(http, path), CheckpointArchive.ids
    answers = iter([["000001-v9", *there]])
    monkeypatch.setattr(
        CheckpointArchive, "ids", lambda archive: next(answers, None) or ids_of(archive)
    )

    assert ids(http, path) == there
    assert next(answers, None) is None


def test_a_checkpoint_that_is_read_says_how_far_until_it_is_read(http, pool, path, monkeypatch):
    """Also if who asked for it went away in between."""
    reached, goes_on, verify = threading.Event(), threading.Event(), checkpoint.verify

    def held(store, checkpoint_id, progress):
        def told(*far):
            progress(*far)
            reached.set()
            assert goes_on.wait(DEADLINE_S)

        return verify(store, checkpoint_id, told)

    monkeypatch.setattr(checkpoint, "verify", held)
    impatient = httpx.Timeout(DEADLINE_S, read=0.01)
    asking = pool.submit(http.post, f"{path}/checkpoints/000001-v0/verify", timeout=impatient)
    assert reached.wait(DEADLINE_S)
    assert isinstance(asking.exception(DEADLINE_S), httpx.ReadTimeout)

    far = http.get(f"{path}/checkpoints").json()["progress"]
    writing = http.get(path).json()["durability"]["writing"]
    goes_on.set()

    assert far["phase"] == "verifying"
    assert 0 < far["done_bytes"] <= far["bytes"]
    assert writing is None
    deadline = time.monotonic() + DEADLINE_S
    while http.get(f"{path}/checkpoints").json()["progress"] is not None:
        assert time.monotonic() < deadline, "it is read for ever"


def test_a_checkpoint_is_deleted_but_never_the_last_that_is_whole(http, server, path):
    """Without it the model would be lost at the next start."""
    first, second = ids(http, path)

    assert http.delete(f"{path}/checkpoints/{first}").status_code == 204
    answer = http.delete(f"{path}/checkpoints/{second}")

    assert_problem(answer, 409, "conflict")
    assert ids(http, path) == [second]


def test_a_checkpoint_that_is_damaged_does_not_count_as_another(http, server, path):
    """Deleting the only whole one is refused, whatever else lies there."""
    first, second = ids(http, path)
    (folder_of(server, path) / "checkpoints" / first / "manifest.json").unlink()

    assert_problem(http.delete(f"{path}/checkpoints/{second}"), 409, "conflict")
    assert http.delete(f"{path}/checkpoints/{first}").status_code == 204


def test_two_who_delete_at_once_leave_one(http, path):
    """Each sees what the other has done."""
    with ThreadPoolExecutor(2) as pool:
        calls = [f"{path}/checkpoints/{checkpoint}" for checkpoint in ids(http, path)]
        statuses = sorted(answer.status_code for answer in pool.map(http.delete, calls))

    assert statuses == [204, 409]
    assert len(ids(http, path)) == 1


def test_checkpoints_written_at_once_are_named_in_the_order_of_what_they_hold(http, path):
    """The newest name is the newest state, whoever wrote first, while pushes go on."""
    worker = Worker(http, path, "w1")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(http.post, f"{path}/checkpoints") for _ in range(8)]
        for _ in range(20):
            worker.push(0.0)
        assert {future.result().status_code for future in futures} == {201}

    listed = http.get(f"{path}/checkpoints").json()["checkpoints"]
    written = sorted((future.result().json() for future in futures), key=lambda made: made["id"])
    versions = [checkpoint["version"] for checkpoint in written]
    assert len({checkpoint["id"] for checkpoint in written}) == 8
    assert versions == sorted(versions)
    assert listed == written[-3:]


def test_a_checkpoint_holds_one_cut_while_pushes_go_on(http):
    """Parameters and slots of the same moment: with lr 1 both count the pushes."""
    path = create(
        http,
        values=filled(0.0),
        optimizer={"class_name": "Adagrad", "config": {"initial_accumulator_value": 0.0}},
    )
    worker = Worker(http, path)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            future = pool.submit(http.post, f"{path}/checkpoints")
            for _ in range(5):
                worker.push(1.0)
            created = future.result().json()
            files = f"{path}/checkpoints/{created['id']}/files"
            slots = load(http.get(f"{files}/optimizer.safetensors").content)

            for array in slots.values():
                assert (array == created["version"]).all()
