"""Object stores under the stores' contract: in memory, and S3 over HTTP from its own server."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid

import httpx
import numpy as np
import pytest
import stepwell
from stepwell_core.errors import InvalidArgument, StoreFailed
from stepwell_server.storage.folders import DataFolder
from stepwell_server.storage.stores import Unsettled, open_store
from stepwell_server.storage.stores.base import MANIFEST

from tests import servers
from tests.server.storage.snapshots import assert_holds, snapshot
from tests.server.storage.stores.contract import ID, LARGE, OTHER, StoreContract, read, write

pytest.importorskip("obstore", reason="the extra object-stores is not installed")

BUCKET = "checkpoints"


class S3Server:
    """moto's S3 server, a process of its own on loopback."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        """Start it, empty, and wait until it answers."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + servers.DEADLINE_S
        while True:
            try:
                httpx.put(f"{self.url}/{BUCKET}", trust_env=False).raise_for_status()
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the S3 server starts"
                time.sleep(0.05)
            else:
                return

    def kill(self):
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def s3():
    """A server that runs for all tests of the module."""
    pytest.importorskip("moto", reason="moto, whose S3 server this is, is not installed")
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture
def s3_url(s3, monkeypatch):
    """A place of its own in the bucket; the environment says how to get there."""
    for name, value in environment_of(s3).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def environment_of(s3):
    """Return how an S3 client finds the server."""
    return {
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


class TestMemoryStore(StoreContract):
    """Objects in this process."""

    @pytest.fixture
    def store(self):
        return open_store("memory://test").of_model("m")


class TestS3Store(StoreContract):
    """Objects over HTTP."""

    @pytest.fixture
    def store(self, s3_url):
        return open_store(s3_url).of_model("m")


def test_models_are_told_apart_and_removed_whole(s3_url):
    """Notes too."""
    place = open_store(s3_url)
    for name in ("a", "b"):
        write(place.of_model(name), file=b"x")
    place.of_model("a").put_note("pins.json", b"[]")

    place.of_model("a").remove_all()

    assert place.models() == ["b"]
    assert place.of_model("a").note("pins.json") is None


def test_an_upload_that_is_cut_off_leaves_no_checkpoint_and_says_what_to_do(s3, s3_url):
    """The store is killed in the middle."""
    store = open_store(s3_url).of_model("m")
    s3.kill()
    try:
        with pytest.raises(StoreFailed, match=r"s3://.*credentials"):
            write(store, a=LARGE * 3)
    finally:
        s3.start()

    assert store.ids() == []


def test_a_bucket_that_is_not_there_is_refused(s3_url):
    """Not taken for an empty one."""
    with pytest.raises((StoreFailed, FileNotFoundError)):
        write(open_store("s3://no-such-bucket/x").of_model("m"), a=b"1")


def answering(monkeypatch, *, puts, fails):
    """Return a store that obeys so many times when it is given a manifest, and says otherwise."""
    store = open_store("memory://test").of_model("m")
    create = store._create

    def put(key, content):
        for _ in range(puts):
            create(key, content)
        if fails:
            raise TimeoutError

    monkeypatch.setattr(store, "_create", put)
    return store


def test_leftovers_of_killed_uploads_are_removed_and_nothing_else():
    """Of a checkpoint that is there, and of one that never was."""
    store = open_store("memory://test").of_model("m")
    prefix = write(store, manifest=b"?", a=b"1")
    store._store.put(f"m/{ID}/{MANIFEST}", b'{"prefix":"%s"}' % prefix.encode())
    store.put_note("pins.json", b"[]")
    there = set(keys_of(store))
    for key in (f"m/{ID}/{'0' * 16}/a", f"m/{OTHER}/{'1' * 16}/a"):
        store._store.put(key, b"left")

    store.remove_leftovers()

    assert set(keys_of(store)) == there


def keys_of(store):
    """Return all keys that there are."""
    return [entry["path"] for entries in store._store.list() for entry in entries]


def test_a_store_belongs_to_one_data_folder_until_another_takes_it_over(tmp_path):
    """Two servers would take each other's models, and remove each other's checkpoints."""
    store, again = open_store("memory://test"), open_store("memory://test")
    again._store = store._store  # as two processes see one bucket
    first = DataFolder(tmp_path / "first", store)
    model = store.of_model("m")
    write(model)
    with pytest.raises(StoreFailed, match=r"another data folder.*--take-over-store"):
        DataFolder(tmp_path / "second", again)
    assert write(model, OTHER) is not None

    second = DataFolder(tmp_path / "second", again, takes_over=True)

    for change in (
        lambda: write(model, "000003-v4"),
        lambda: model.remove(ID),
        model.remove_all,
        model.remove_leftovers,
        lambda: model.put_note("pins.json", b"[]"),
    ):
        with pytest.raises(StoreFailed, match="another data folder"):
            change()
    assert sorted(again.of_model("m").ids()) == [ID, OTHER]
    assert len([key for key in keys_of(model) if not key.startswith("m/0000")]) == 1
    first.release()
    second.release()
    with pytest.raises(StoreFailed, match="another data folder"):
        DataFolder(tmp_path / "first", store)
    DataFolder(tmp_path / "second", again).release()


@pytest.mark.parametrize(("puts", "fails"), [(1, True), (2, False)], ids=["lost", "retried"])
def test_a_manifest_that_was_put_though_it_was_not_said_is_known_again(monkeypatch, puts, fails):
    """Its answer was lost, or a retry found the first try's; its content tells that it is ours."""
    store = answering(monkeypatch, puts=puts, fails=fails)

    prefix = write(store, manifest=b"mine", a=b"1")

    assert read(store, ID, MANIFEST) == b"mine"
    assert read(store, ID, prefix + "a") == b"1"


def test_a_manifest_of_which_nothing_is_known_is_unsettled_and_its_files_stay(monkeypatch):
    """It may still arrive."""
    store = answering(monkeypatch, puts=0, fails=True)

    with pytest.raises(Unsettled, match="look whether it is there"):
        write(store, manifest=b"mine", a=b"1")

    assert [key.rpartition("/")[2] for key in keys_of(store)] == ["a"]


@pytest.mark.parametrize(
    "url", ["ftp://x", "s3://", "s3:bucket", "bucket", "s3://key:secret@bucket", "s3://b?x=1"]
)
def test_what_is_no_url_of_a_store_is_refused(url):
    """With what one looks like; credentials never belong into it."""
    with pytest.raises(InvalidArgument, match="checkpoint store"):
        open_store(url)


def test_a_model_whose_disk_is_gone_comes_back_from_the_store(s3, s3_url, tmp_path):
    """A spot machine: another server, an empty data folder, the same store."""
    flags = ("--checkpoint-store", s3_url, "--durability", "always")
    environment = environment_of(s3)
    with servers.served(tmp_path / "first", *flags, **environment) as server:
        with stepwell.Client(server.url) as client:
            start = {"w": np.zeros(300_000, np.float32)}
            model = client.create_model("m", start, optimizer=stepwell.SGD(1.0, momentum=0.5))
            with model.worker("w0") as worker:
                worker.push({"w": -np.ones(300_000, np.float32)})
            saved = model.checkpoint(pinned=True)
        server.kill()
    with (
        servers.served(tmp_path / "second", *flags, "--take-over-store", **environment) as server,
        stepwell.Client(server.url) as client,
    ):
        pulled = client.model("m").pull()
        listed = client.model("m").checkpoints()
        client.delete_model("m")

    assert pulled["w"].tolist() == [1.0] * 300_000
    assert [entry.pinned for entry in listed if entry.id == saved.id] == [True]
    assert not (tmp_path / "first" / "m" / "checkpoints" / saved.id).exists()


def test_the_archive_keeps_its_promises_in_a_store(s3_url, tmp_path):
    """Verified, retained, pinned; what a killed upload left is no model."""
    place = open_store(s3_url)
    data = DataFolder(tmp_path, place)
    folder = data.new_model("m")
    folder.create()
    folder.show()
    archive = folder.archive
    for version in range(1, 5):
        archive.write(snapshot(version, seed=version), 0, pinned=version == 1)
    with place.of_model("half").draft(ID) as draft, draft.file("a") as file:
        file.write(b"x")
    place.of_model("garbage").put_note("note", b"x")

    removed = archive.retain(1)

    assert removed == ["000003-v3", "000002-v2"]
    assert_holds(archive.newest()[1], snapshot(4, seed=4))
    assert archive.pinned() == {"000001-v1"}
    assert [found.name for found in data.models()] == ["m"]
    assert read(place.of_model("m"), "000001-v1", "manifest.json")
    data.release()
