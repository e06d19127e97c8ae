"""The local disk under the stores' contract."""

from __future__ import annotations

import pytest
from stepwell_server.storage.stores import LocalStore

from tests.server.storage.stores.contract import ID, StoreContract, write


class TestLocalStore(StoreContract):
    """Folders."""

    @pytest.fixture
    def store(self, tmp_path):
        return LocalStore(tmp_path)


def test_a_draft_that_fails_leaves_no_folder(tmp_path):
    """Not even under a temporary name."""
    store = LocalStore(tmp_path)
    with pytest.raises(RuntimeError), store.draft(ID):
        raise RuntimeError

    assert list(tmp_path.iterdir()) == []


def test_files_are_as_long_as_they_say(tmp_path):
    """Though they are written in whole blocks, past the page cache."""
    write(LocalStore(tmp_path), a=b"x" * 4097, b=b"y" * (5 << 20))

    assert (tmp_path / ID / "a").stat().st_size == 4097
    assert (tmp_path / ID / "b").read_bytes() == b"y" * (5 << 20)
