"""What is done with a checkpoint that is there: verified, pinned, forked, restored; and refused."""

from __future__ import annotations

import pytest

from tests.server.calls import (
    MOMENTUM,
    MSGPACK,
    Worker,
    assert_problem,
    create,
    image,
    new_name,
    packed,
    pull,
)

CALLS = ("restore", "verify", "pin", "fork")


@pytest.fixture
def path(http):
    """A model with a slot, after two pushes, with a checkpoint after the first."""
    return trained_model(http)


@pytest.fixture(scope="module")
def untouched(http):
    """The same, for tests that change nothing; and all that can be seen of it."""
    path = trained_model(http)
    return path, seen(http, path)


def trained_model(http):
    """Create a model, push to it, write a checkpoint, and push again."""
    path = create(http, optimizer=MOMENTUM)
    worker = Worker(http, path)
    worker.push(2.0)
    assert http.post(f"{path}/checkpoints").status_code == 201
    worker.push(2.0)
    return path


def seen(http, path):
    """Return all that can be seen of a model, checkpoints too."""
    return image(http, path), listed(http, path)


def listed(http, path):
    """Return what lists show of each checkpoint."""
    return http.get(f"{path}/checkpoints").json()["checkpoints"]


def newest(http, path):
    """Return the path of the newest checkpoint."""
    return f"{path}/checkpoints/{listed(http, path)[-1]['id']}"


def folder_of(server, path):
    """Return where the server keeps a model."""
    return server.application.registry.get(path.rpartition("/")[2]).folder.path


def damage(server, path, checkpoint, file="optimizer.safetensors"):
    """Flip a bit of the last tensor in a file."""
    damaged = folder_of(server, path) / "checkpoints" / checkpoint / file
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)


# Verify


def test_verifying_says_what_the_checkpoint_is_and_changes_nothing(http, untouched):
    """As it was answered when it was written."""
    path, before = untouched

    answer = http.post(f"{newest(http, path)}/verify")

    assert answer.status_code == 200, answer.text
    assert {**answer.json(), "pinned": False} == listed(http, path)[-1]
    assert seen(http, path) == before


def test_verifying_a_damaged_checkpoint_names_the_tensor(http, server, path):
    """And training goes on."""
    damage(server, path, listed(http, path)[-1]["id"])

    document = assert_problem(http.post(f"{newest(http, path)}/verify"), 500, "checkpoint_invalid")

    assert "'momentum/bias' in optimizer.safetensors" in document["detail"]
    assert Worker(http, path, "w1").push()["outcome"] == "applied"


# Pin


@pytest.mark.parametrize("is_msgpack", [False, True])
def test_a_pinned_checkpoint_stays_until_it_is_unpinned(http, path, is_msgpack):
    """However many come after it; without a body it is pinned."""
    checkpoint = newest(http, path)
    pinned = http.post(f"{checkpoint}/pin")
    for _ in range(4):
        http.post(f"{path}/checkpoints")
    entries = {entry["id"]: entry["pinned"] for entry in listed(http, path)}
    refused = http.delete(checkpoint)

    if is_msgpack:
        headers = {"Content-Type": MSGPACK}
        freed = http.post(f"{checkpoint}/pin", content=packed({"pinned": False}), headers=headers)
    else:
        freed = http.post(f"{checkpoint}/pin", json={"pinned": False})

    name = checkpoint.rpartition("/")[2]
    assert (pinned.status_code, pinned.json()) == (200, {"id": name, "pinned": True})
    assert (len(entries), entries[name], sum(entries.values())) == (4, True, 1)
    assert_problem(refused, 409, "conflict")
    assert freed.json() == {"id": name, "pinned": False}
    assert http.delete(checkpoint).status_code == 204


def test_pinning_twice_is_pinning_once(http, path):
    """So is unpinning what was not pinned."""
    checkpoint = newest(http, path)

    for pinned in (True, True, False, False):
        assert http.post(f"{checkpoint}/pin", json={"pinned": pinned}).status_code == 200
        assert listed(http, path)[-1]["pinned"] is pinned


# Fork


def test_a_fork_is_a_model_of_its_own_from_that_moment(http, path):
    """All but the sessions; what is pushed to one does not change the other."""
    name = new_name()

    answer = http.post(f"{newest(http, path)}/fork", json={"name": name})

    fork = f"/v1/models/{name}"
    assert answer.status_code == 201, answer.text
    forked, source = answer.json(), http.get(path).json()
    assert (forked["name"], forked["version"], forked["iterations"]) == (name, 1, 1)
    assert forked["incarnation"] != source["incarnation"]
    assert forked["tensors"] == source["tensors"]
    assert http.get(f"{fork}/workers").json()["workers"] == []
    assert len(listed(http, fork)) == 1
    before = pull(http, path)
    Worker(http, fork).push(2.0)
    for name, array in pull(http, fork).items():
        assert array.tobytes() == before[name].tobytes()  # slots were forked too
        assert pull(http, path)[name].tobytes() == before[name].tobytes()


def test_the_source_can_go_when_it_was_forked(http, path):
    """Nothing is shared."""
    name = new_name()
    http.post(f"{newest(http, path)}/fork", json={"name": name})

    assert http.delete(path).status_code == 204

    assert (pull(http, f"/v1/models/{name}")["bias"] == 0.0).all()


def test_a_fork_never_replaces_a_model(http, untouched):
    """Neither another one nor its own source."""
    path, before = untouched
    other = create(http)
    other_before = image(http, other)

    for taken in (other, path):
        answer = http.post(f"{newest(http, path)}/fork", json={"name": taken.rpartition("/")[2]})
        assert_problem(answer, 409, "model_exists")

    assert image(http, other) == other_before
    assert seen(http, path) == before


def test_a_damaged_checkpoint_is_not_forked(http, server, path):
    """And leaves no model of that name."""
    damage(server, path, listed(http, path)[-1]["id"], "parameters.safetensors")
    name = new_name()

    answer = http.post(f"{newest(http, path)}/fork", json={"name": name})

    assert_problem(answer, 500, "checkpoint_invalid")
    assert_problem(http.get(f"/v1/models/{name}"), 404, "model_not_found")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../other", "a/b", "m" * 65, "m\u00f6dell", "A", "a\n", "a\0b"]
)
def test_a_name_that_no_model_may_have_forks_nothing(http, server, untouched, name):
    """It would be a folder, or a path to one."""
    path, before = untouched
    folder = folder_of(server, path).parent
    folders = sorted(entry.name for entry in folder.iterdir())

    answer = http.post(f"{newest(http, path)}/fork", json={"name": name})

    assert_problem(answer, 422, "invalid_name")
    assert sorted(entry.name for entry in folder.iterdir()) == folders
    assert seen(http, path) == before


def test_a_name_of_a_file_of_the_data_folder_forks_nothing(http, untouched):
    """As a model of that name is not created."""
    answer = http.post(f"{newest(http, untouched[0])}/fork", json={"name": "stepwell.json"})

    assert_problem(answer, 422, "invalid_name")


# Refusals of all


@pytest.mark.parametrize(
    "checkpoint",
    [
        "000009-v0",
        "latest",
        "%2e%2e",
        "..%2F..%2Fetc",
        "000001-v0%0A",
        "000001-v0%00",
        "%D9%A0%D9%A0%D9%A0%D9%A0%D9%A0%D9%A1-v%D9%A0",
        "\u0142",
        "9" * 3000,
        "9" * 3000 + "-v0",
        "pins.json",
        ".tmp-1",
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_a_checkpoint_that_does_not_exist_is_404(http, untouched, call, checkpoint):
    """Whatever its name looks like; the answer does not repeat all of it."""
    path, before = untouched
    body = {"name": new_name()} if call == "fork" else {}

    answer = http.post(f"{path}/checkpoints/{checkpoint}/{call}", json=body)

    assert answer.status_code == 404, answer.text
    assert answer.json()["code"] in ("checkpoint_not_found", "route_not_found")
    assert len(answer.content) < 1024
    assert seen(http, path) == before


@pytest.mark.parametrize("call", CALLS)
def test_a_model_that_does_not_exist_has_no_checkpoints(http, call):
    """It is the model that is missed."""
    body = {"name": new_name()} if call == "fork" else {}

    answer = http.post(f"/v1/models/nobody/checkpoints/000001-v0/{call}", json=body)

    assert_problem(answer, 404, "model_not_found")


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("pin", {"pinned": "yes"}),
        ("pin", {"pinned": 1}),
        ("pin", {"pinned": None}),
        ("pin", {"keep": True}),
        ("fork", {}),
        ("fork", {"name": None}),
        ("fork", {"name": 7}),
        ("fork", {"name": ["a"]}),
        ("fork", {"name": "a", "exist_ok": True}),
    ],
)
def test_a_body_that_breaks_a_rule_does_nothing(http, untouched, call, body):
    """And the answer names the field."""
    path, before = untouched

    answer = http.post(f"{newest(http, path)}/{call}", json=body)

    document = assert_problem(answer, 422, "invalid_input")
    assert document["fields"][0]["field"] in ("pinned", "keep", "name", "exist_ok")
    assert seen(http, path) == before


@pytest.mark.parametrize("call", ["pin", "fork"])
@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"{", "application/json"),
        (b'["a"]', "application/json"),
        (b"[" * 50_000, "application/json"),
        (b"\xc1", MSGPACK),
        (b"\x91\x01", MSGPACK),
    ],
)
def test_a_body_that_cannot_be_read_does_nothing(http, untouched, call, content, media_type):
    """In neither form."""
    path, before = untouched

    answer = http.post(
        f"{newest(http, path)}/{call}", content=content, headers={"Content-Type": media_type}
    )

    assert_problem(answer, 400, "malformed_message")
    assert seen(http, path) == before
