"""What every place for checkpoints has to do; a new one is a subclass with a `store` fixture."""

from __future__ import annotations

import pytest
from stepwell_core.errors import Conflict
from stepwell_server.storage.stores.base import MANIFEST

LARGE = bytes(range(256)) * (9 << 12)  # more than a window and a part
ID, OTHER = "000001-v0", "000002-v3"


def write(store, checkpoint_id=ID, manifest=b"{}", **files):
    """Write a checkpoint; return the prefix of its files."""
    with store.draft(checkpoint_id) as draft:
        for name, content in files.items():
            with draft.file(name) as file:
                file.write(content[:5])
                file.write(memoryview(content)[5:])
        draft.commit(manifest)
    return draft.prefix


def read(store, checkpoint_id, name):
    """Return the bytes of a file."""
    return b"".join(map(bytes, store.pieces(checkpoint_id, name)))


def break_off(store, is_inside_a_file):
    """Begin a checkpoint, and fail."""
    with store.draft(OTHER) as draft, draft.file("a") as file:
        file.write(LARGE)
        if is_inside_a_file:
            raise RuntimeError
    with store.draft(OTHER) as draft:
        with draft.file("a") as file:
            file.write(b"x")
        raise RuntimeError


class StoreContract:
    """The suite; `store` gives the checkpoints of one model in a place with nothing else."""

    def test_what_was_committed_is_there_byte_for_byte(self, store):
        """Large files, small ones, empty ones, and the manifest."""
        prefix = write(store, manifest=b'{"a": 1}', large=LARGE, small=b"x", empty=b"")

        assert store.ids() == [ID]
        assert read(store, ID, MANIFEST) == b'{"a": 1}'
        for name, content in {"large": LARGE, "small": b"x", "empty": b""}.items():
            assert read(store, ID, prefix + name) == content
            assert store.size(ID, prefix + name) == len(content)

    def test_a_draft_that_is_not_committed_leaves_nothing(self, store):
        """Whether its block is left or broken off."""
        with store.draft(ID) as draft, draft.file("a") as file:
            file.write(LARGE)
        for is_inside_a_file in (False, True):
            with pytest.raises(RuntimeError):
                break_off(store, is_inside_a_file)

        assert store.ids() == []
        for checkpoint_id in (ID, OTHER):
            with pytest.raises(FileNotFoundError):
                store.size(checkpoint_id, MANIFEST)

    def test_an_existing_checkpoint_is_never_replaced(self, store):
        """Who comes second has disturbed nothing."""
        prefix = write(store, manifest=b"first", a=b"1")

        with pytest.raises(Conflict, match=ID):
            write(store, manifest=b"second", a=b"2")

        assert store.ids() == [ID]
        assert read(store, ID, MANIFEST) == b"first"
        assert read(store, ID, prefix + "a") == b"1"

    def test_a_file_that_is_not_there_is_not_found(self, store):
        """Of a checkpoint that is, and of one that is not."""
        write(store)

        for checkpoint_id, name in ((ID, "none"), (OTHER, MANIFEST)):
            with pytest.raises(FileNotFoundError):
                store.size(checkpoint_id, name)
            with pytest.raises(FileNotFoundError):
                read(store, checkpoint_id, name)

    def test_a_removed_checkpoint_is_gone_and_others_are_not(self, store):
        """With all its files."""
        first, second = write(store, a=b"1"), write(store, OTHER, a=b"2")

        store.remove(ID)

        assert store.ids() == [OTHER]
        assert read(store, OTHER, second + "a") == b"2"
        with pytest.raises(FileNotFoundError):
            store.size(ID, first + "a")

    def test_notes_are_written_over_and_are_no_checkpoints(self, store):
        """Small files beside them."""
        write(store)
        before = store.note("pins.json")

        store.put_note("pins.json", b"[1]")
        store.put_note("pins.json", b"[2]")

        assert (before, store.note("pins.json")) == (None, b"[2]")
        assert store.ids() == [ID]
