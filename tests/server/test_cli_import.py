"""What is read of safetensors files for an import."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file
from stepwell_core.errors import DtypeMismatch, InvalidInput
from stepwell_server.cli_import import read_tensors


def test_the_tensors_of_all_files_are_read(tmp_path):
    """By their names, as they are."""
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "momentum/w": np.ones((2, 3))}
    for number, (name, array) in enumerate(arrays.items()):
        save_file({name: array}, tmp_path / f"{number}.safetensors")

    found = read_tensors(sorted(tmp_path.iterdir()))

    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_a_tensor_in_two_files_is_refused_by_its_name_and_theirs(tmp_path):
    """Whichever comes first; a file that is given twice is one of them."""
    a, b = tmp_path / "a", tmp_path / "b"
    save_file({"x": np.zeros(1), "w": np.zeros(2)}, a)
    save_file({"w": np.ones(2), "y": np.zeros(1)}, b)

    for first, second in ((a, b), (b, a)):
        with pytest.raises(InvalidInput, match=f"'w' is in {first} and in {second}"):
            read_tensors([first, second])
    with pytest.raises(InvalidInput, match=f"is in {a} and in {a}"):
        read_tensors([a, a])


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F16", "I64"])
def test_a_type_that_no_model_has_is_refused_with_the_tensors_name(tmp_path, dtype):
    """Also one that NumPy does not know."""
    size = {"BF16": 2, "F8_E4M3": 1, "F16": 2, "I64": 8}[dtype]
    entry = {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}
    head = json.dumps({"w": entry}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(head)) + head + bytes(3 * size))

    with pytest.raises(DtypeMismatch, match=f"Received: 'w' of {dtype}"):
        read_tensors([file])


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b'{"w": 1}', None])
def test_what_is_no_safetensors_file_is_one_sentence(tmp_path, content):
    """An empty file, one of zeros, another format, or none at all."""
    file = tmp_path / "x.safetensors"
    if content is not None:
        file.write_bytes(content)

    reason = f"There is no file {file}" if content is None else f"{file} cannot be read as one"
    with pytest.raises(InvalidInput, match=reason):
        read_tensors([file])


def test_a_folder_is_no_safetensors_file(tmp_path):
    """As one that was exported to."""
    with pytest.raises(InvalidInput, match="cannot be read as one"):
        read_tensors([tmp_path])
