"""A checkpoint is whole or it is refused: every bit of it is under a hash."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file, save_file
from stepwell_core.errors import CheckpointInvalid, Conflict
from stepwell_server.storage.manifest import MANIFEST, OPTIMIZER, PARAMETERS

from tests.server.storage.snapshots import (
    LAYOUT,
    assert_holds,
    read,
    reseal,
    snapshot,
    write,
)


@pytest.fixture
def cut():
    """What is written."""
    return snapshot()


@pytest.fixture
def folder(tmp_path, cut):
    """A checkpoint of `cut`."""
    write(tmp_path / "000001-v3", cut, number=7)
    return tmp_path / "000001-v3"


def test_what_is_read_is_what_was_written_bit_by_bit(folder, cut):
    """Parameters, slots, counters, ledger and definition; nothing else lies there."""
    manifest, state = read(folder)

    assert_holds(state, cut)
    assert (manifest.id, manifest.incarnation) == ("000001-v3", cut.incarnation)
    assert manifest.journal_number == 7
    assert {path.name for path in folder.iterdir()} == {MANIFEST, OPTIMIZER, PARAMETERS}
    assert [path.name for path in folder.parent.iterdir()] == ["000001-v3"]


def test_the_files_open_with_plain_safetensors(folder, cut):
    """Under the tensors' own names, in their shapes."""
    parameters, slots = load_file(folder / PARAMETERS), load_file(folder / OPTIMIZER)

    expected = LAYOUT.views(cut.parameters.arenas)
    assert parameters.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(parameters[name], array)
        assert slots[f"momentum/{name}"].shape == array.shape


@pytest.mark.parametrize("file", [PARAMETERS, OPTIMIZER])
def test_a_flipped_bit_of_a_tensor_is_caught(folder, file):
    """Safetensors itself would load it without complaint."""
    path = folder / file
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")

    for place in range(start, len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(CheckpointInvalid, match="does not match its hash"):
            read(folder)


@pytest.mark.parametrize("file", [PARAMETERS, OPTIMIZER])
def test_a_damaged_head_of_a_tensor_file_is_refused_or_harmless(folder, cut, file):
    """What flips in the names, shapes and offsets is refused, or changes nothing that is read."""
    path = folder / file
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")

    for place in range(start):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            _, state = read(folder)
        except CheckpointInvalid:
            continue
        assert_holds(state, cut)


@pytest.mark.parametrize("file", [PARAMETERS, OPTIMIZER])
def test_a_tensor_file_of_another_size_is_refused(folder, file):
    """Cut, lengthened, empty, gone."""
    path = folder / file
    content = path.read_bytes()

    for wrong in (content[:-1], content + b"\0", b""):
        path.write_bytes(wrong)
        with pytest.raises(CheckpointInvalid, match=r"has \d+ bytes instead of"):
            read(folder)
    path.unlink()
    with pytest.raises(CheckpointInvalid, match="cannot be read"):
        read(folder)


def test_a_checkpoint_of_version_1_is_read(folder, cut):
    """It had no journal beside it, and lay in one folder."""

    def change(values):
        values["format_version"] = 1
        for name in ("journal_number", "prefix", "gathered", "ledger_xxh3_128"):
            values.pop(name, None)

    reseal(folder, change)

    manifest, state = read(folder)
    assert (manifest.journal_number, manifest.prefix, manifest.ledger_hash) == (0, "", "")
    assert_holds(state, cut)


def hash_of(array) -> str:
    """The hash of a tensor, as docs/checkpoint-format.md has it."""
    return xxhash.xxh3_128_hexdigest(array.tobytes())


def rewrite(folder, file, tensors) -> None:
    """Write other tensors, with a manifest that vouches for them."""
    save_file(tensors, folder / file)

    def change(values):
        values["files"][file] = (folder / file).stat().st_size
        values["hashes"][file] = {name: hash_of(a) for name, a in tensors.items()}

    reseal(folder, change)


def test_a_tensor_that_is_missing_misshapen_or_not_ours_is_refused(folder):
    """All or nothing, however well it is hashed."""
    whole = load_file(folder / PARAMETERS)
    missing = {name: array for name, array in whole.items() if name != "bias"}
    misshapen = {**whole, "dense/kernel": whole["dense/kernel"].T.copy()}
    converted = {**whole, "bias": whole["bias"].astype("float32")}
    foreign = {**whole, "other": whole["bias"]}

    for tensors in (missing, misshapen, converted, foreign, {}):
        rewrite(folder, PARAMETERS, tensors)
        with pytest.raises(CheckpointInvalid):
            read(folder)


def test_a_slot_that_is_missing_in_part_or_misshapen_is_refused(folder):
    """Never a warning and a fresh start for the rest."""
    whole = load_file(folder / OPTIMIZER)
    missing = {name: array for name, array in whole.items() if name != "momentum/bias"}
    misshapen = {**whole, "momentum/bias": whole["momentum/bias"][:2].copy()}

    for tensors in (missing, misshapen):
        rewrite(folder, OPTIMIZER, tensors)
        with pytest.raises(CheckpointInvalid):
            read(folder)


def test_an_existing_checkpoint_is_never_replaced(folder, cut):
    """Not even an empty folder of its name."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder.parent / "000002-v3").mkdir()

    for name in ("000001-v3", "000002-v3"):
        with pytest.raises(Conflict):
            write(folder.parent / name, snapshot(seed=1))

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["000001-v3", "000002-v3"]
