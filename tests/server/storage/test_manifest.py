"""What a manifest says is taken only if it is whole, and what each value must be."""

from __future__ import annotations

import pytest
from stepwell_core.errors import CheckpointInvalid
from stepwell_server.storage.manifest import MANIFEST

from tests.server.storage.snapshots import read, read_manifest, reseal, snapshot, write


@pytest.fixture
def folder(tmp_path):
    """A checkpoint."""
    write(tmp_path / "000001-v3", snapshot(), number=7)
    return tmp_path / "000001-v3"


@pytest.mark.full
@pytest.mark.timeout(300)
def test_every_single_bit_of_the_manifest_counts(folder):
    """Flip each of them in turn: none goes unnoticed."""
    path = folder / MANIFEST
    content = path.read_bytes()

    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(CheckpointInvalid):
                read_manifest(folder)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_manifest_that_is_cut_anywhere_is_refused(folder):
    """Also one with something behind it."""
    path = folder / MANIFEST
    content = path.read_bytes()

    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointInvalid):
            read_manifest(folder)
    path.write_bytes(content + b"\n")
    with pytest.raises(CheckpointInvalid):
        read_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(format="other"),
        lambda values: values.update(format_version=3),
        lambda values: values.pop("ledger"),
        lambda values: values.pop("journal_number"),
        lambda values: values.update(prefix="../../../etc/"),
        lambda values: values.pop("definition"),
        lambda values: values["definition"].update(optimizer={"class_name": "os.system"}),
        lambda values: values["definition"].update(tensors=[]),
        lambda values: values["definition"]["tensors"][0].update(shape=[1 << 60]),
        lambda values: values["definition"]["tensors"][0].update(shape=[1 << 34]),
        lambda values: values.update(format_version=2.0),
        lambda values: values.update(format_version=True),
        lambda values: values.update(id="../../etc"),
        lambda values: values.update(id="000077-v9"),
        lambda values: values.update(incarnation="x" * 1_000_000),
        lambda values: values.update(incarnation=""),
        lambda values: values.update(journal_number=-3),
        lambda values: values.update(journal_number=1 << 70),
        lambda values: values["files"].update({"parameters.safetensors": True}),
        lambda values: values["counters"].update(version="abc"),
        lambda values: values.update(counters={"version": 1}),
        lambda values: values.update(counters=None),
        lambda values: values.update(files=None),
        lambda values: values.update(files=[]),
        lambda values: values.update(hashes=[]),
        lambda values: values.update(hashes={"parameters.safetensors": 3}),
        lambda values: values["hashes"]["parameters.safetensors"].update(bias=3),
    ],
)
def test_a_manifest_with_other_values_is_a_typed_error(folder, change):
    """Whatever a hostile file says, with its hash right: no foreign exception, no memory."""
    reseal(folder, change)

    with pytest.raises(CheckpointInvalid):
        read(folder)
