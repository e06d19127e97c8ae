"""Checkpoints in an object store, through obstore: S3 and what speaks like it, GCS, Azure.

    <prefix>/<model>/<checkpoint>/<draft>/<file>
    <prefix>/<model>/<checkpoint>/manifest.json
    <prefix>/<model>/<note>
    <prefix>/owner.json                         whose it is

An object appears whole or not at all. Each draft's files have keys of their own, large ones are put
in parts; then the small manifest, which says where they are, is put if there is none of its key. So
of two who write a checkpoint of one name one wins, and the other has disturbed nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import MemoryStore, from_url
from stepwell_core.errors import Conflict, StoreFailed

from stepwell_server import failpoints
from stepwell_server.storage.stores.base import (
    MANIFEST,
    CheckpointStore,
    Draft,
    DraftFile,
    ModelStore,
    Unsettled,
)

PART_BYTES = 16 << 20
"""Of one part of a large object; 10,000 parts of it are 160 GiB."""

READ_BYTES = 4 << 20

OWNER = "owner.json"
FORMAT = "stepwell-store"

T = TypeVar("T")


class _Exists(Exception):
    """There is an object of that key."""


class ObjectStore(CheckpointStore):
    """All models' checkpoints below one prefix of a bucket.

    Args:
        url: Checked by `open_store`.
    """

    def __init__(self, url: str) -> None:
        self._place = url
        options: Any = {"timeout": "300s", "connect_timeout": "5s", "allow_http": _may_use_http()}
        retries: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
        self._owner: bytes | None = None
        self._store: Any
        if url.startswith("memory:"):  # for tests
            self._store = MemoryStore()
        else:
            self._store = _asked(
                url, lambda: from_url(url, client_options=options, retry_config=retries)
            )

    def claim(self, owner: str, *, takes_over: bool = False) -> None:
        """Put the owner's name, unless there is one; see `CheckpointStore.claim`."""
        self._owner = json.dumps({"format": FORMAT, "owner": owner}).encode()
        if takes_over:
            _asked(self._place, lambda: self._store.put(OWNER, self._owner))
        self._check_owner()

    def _check_owner(self) -> None:
        """Refuse to change what is another server's, also if it became that a moment ago."""
        if self._owner is None:
            return
        found = self._found_owner()
        if found is None:
            _asked(self._place, self._put_owner)
            found = self._found_owner()
        if found != self._owner:
            raise StoreFailed(
                f"The checkpoint store {self._place} belongs to a server with another data folder "
                f"(its {OWNER} says so); two would remove each other's checkpoints. Use a prefix "
                "that is this server's own; or, if the other one will never run again, start this "
                "one once with --take-over-store. Nothing changed",
                store=self._place,
            )

    def _put_owner(self) -> None:
        with contextlib.suppress(AlreadyExistsError, PreconditionError):
            self._store.put(OWNER, self._owner, mode="create", use_multipart=False)

    def _found_owner(self) -> bytes | None:
        try:
            return _asked(self._place, lambda: bytes(self._store.get(OWNER).bytes()))
        except FileNotFoundError:
            return None

    def models(self) -> list[str]:
        """Return the names below the prefix."""
        return _asked(self._place, lambda: _names_below(self._store, ""))

    def of_model(self, name: str) -> ModelStore:
        """Return the checkpoints of one model."""
        return ObjectModelStore(self._store, self._place, name, self._check_owner)


class ObjectModelStore(ModelStore):
    """The checkpoints of one model, below its name.

    Args:
        store: Of obstore.
        place: Its URL, for people.
        model: The name.
        check_owner: Refuses a change if the store is another server's.
    """

    def __init__(self, store: Any, place: str, model: str, check_owner: Callable[[], None]) -> None:
        self._check_owner = check_owner
        self._store = store
        self._place = place
        self._model = model

    def ids(self) -> list[str]:
        """Return the names below the model's that have a manifest."""
        suffix = f"/{MANIFEST}"

        def ids() -> list[str]:
            keys = _keys_below(self._store, f"{self._model}/")
            found = [key.split("/") for key in keys if key.endswith(suffix)]
            return [parts[1] for parts in found if len(parts) == 3]

        return self._ask(ids)

    @contextlib.contextmanager
    def draft(self, checkpoint_id: str) -> Iterator[Draft]:
        """Give a draft; see `ModelStore.draft`."""
        draft = ObjectDraft(self, checkpoint_id)
        try:
            yield draft
        finally:
            if not draft.is_needed:
                draft.forget()

    def size(self, checkpoint_id: str, name: str) -> int:
        """Return the bytes of an object."""
        key = self._key(checkpoint_id, name)
        return int(self._ask(lambda: self._store.head(key)["size"]))

    def pieces(self, checkpoint_id: str, name: str) -> Iterator[memoryview]:
        """Yield the bytes of an object as they come."""
        key = self._key(checkpoint_id, name)
        stream = iter(self._ask(lambda: self._store.get(key).stream(min_chunk_size=READ_BYTES)))
        while (piece := self._ask(lambda: next(stream, None))) is not None:
            yield memoryview(piece)

    def remove(self, checkpoint_id: str) -> None:
        """Remove a checkpoint: the manifest first."""
        prefix = f"{self._model}/{checkpoint_id}/"
        self._check_owner()

        def remove() -> None:
            with contextlib.suppress(NotFoundError, FileNotFoundError):
                self._store.delete(prefix + MANIFEST)
            _delete_all(self._store, prefix)

        self._ask(remove)

    def remove_all(self) -> None:
        """Remove all keys of the model, those of manifests first."""
        for checkpoint_id in sorted(self.ids()):  # not the newest before its elders
            self.remove(checkpoint_id)
        self._check_owner()
        self._ask(lambda: _delete_all(self._store, f"{self._model}/"))

    def remove_leftovers(self) -> None:
        """Remove the files that no manifest names.

        Parts of an object that was never finished have no key; the bucket's own rules remove those.
        """
        manifests = {name: self._ask(partial(self._manifest, name)) for name in self.ids()}

        def is_left(key: str) -> bool:
            _, checkpoint_id, *rest = key.split("/")
            if len(rest) != 2:
                return False  # a note, or a manifest
            return f'"{rest[0]}/"'.encode() not in manifests.get(checkpoint_id, b"")

        self._check_owner()
        keys = self._ask(lambda: _keys_below(self._store, f"{self._model}/"))
        left = [key for key in keys if is_left(key)]
        if left:
            self._ask(lambda: self._store.delete(left))

    def _manifest(self, checkpoint_id: str) -> bytes:
        return bytes(self._store.get(self._key(checkpoint_id, MANIFEST)).bytes())

    def note(self, name: str) -> bytes | None:
        """Return the content of an object beside the checkpoints."""
        try:
            return self._ask(lambda: bytes(self._store.get(f"{self._model}/{name}").bytes()))
        except FileNotFoundError:
            return None

    def put_note(self, name: str, content: bytes) -> None:
        """Replace an object beside the checkpoints."""
        self._check_owner()
        self._ask(lambda: self._store.put(f"{self._model}/{name}", content))

    def _key(self, checkpoint_id: str, name: str) -> str:
        return f"{self._model}/{checkpoint_id}/{name}"

    def _ask(self, call: Callable[[], T]) -> T:
        return _asked(self._place, call)

    # For drafts

    def put_manifest(self, checkpoint_id: str, content: bytes) -> None:
        """Put a manifest, unless there is one.

        Raises:
            Conflict: There is one of another draft.
            Unsettled: Whether it was, or will be, put is not known.
        """
        key = self._key(checkpoint_id, MANIFEST)
        self._check_owner()
        try:
            self._ask(lambda: self._create(key, content))
        except (_Exists, StoreFailed) as error:
            # One that was put though its answer was lost is there when it is put again.
            if self._has(key, content):
                return
            if isinstance(error, _Exists):
                raise Conflict(
                    f"There is a checkpoint {checkpoint_id!r} already; nothing changed"
                ) from None
            raise Unsettled(
                f"The checkpoint store {self._place} was given checkpoint {checkpoint_id} and did "
                f"not say that it has it ({error.message}); look whether it is there",
                store=self._place,
            ) from None

    def _create(self, key: str, content: bytes) -> None:
        try:
            self._store.put(key, content, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            raise _Exists from None

    def _has(self, key: str, content: bytes) -> bool:
        """Return whether an object is known to be there, with this content."""
        try:
            return self._ask(lambda: bytes(self._store.get(key).bytes())) == content
        except (FileNotFoundError, StoreFailed):
            return False

    @contextlib.contextmanager
    def writer(self, checkpoint_id: str, name: str) -> Iterator[DraftFile]:
        """Give a file that is put in parts; it appears when the block ends well."""
        key = self._key(checkpoint_id, name)
        upload = Upload(self._ask, self._store, key)
        yield upload
        upload.end()

    def delete_below(self, checkpoint_id: str, name: str) -> None:
        """Delete what a draft has put."""
        self._ask(lambda: _delete_all(self._store, f"{self._key(checkpoint_id, name)}/"))


class ObjectDraft(Draft):
    """Objects under keys that no manifest names yet."""

    def __init__(self, store: ObjectModelStore, checkpoint_id: str) -> None:
        self.prefix = f"{secrets.token_hex(8)}/"
        self.is_needed = False  # by a manifest that was put, or may have been
        self._store = store
        self._id = checkpoint_id

    def file(self, name: str) -> AbstractContextManager[DraftFile]:
        """Begin an object."""
        return self._store.writer(self._id, self.prefix + name)

    def commit(self, manifest: bytes) -> None:
        """Put the manifest, unless there is one."""
        failpoints.reach("checkpoint.files_written")
        try:
            self._store.put_manifest(self._id, manifest)
        except Unsettled:
            self.is_needed = True
            raise
        self.is_needed = True

    def forget(self) -> None:
        """Delete what was put; what cannot be is named by no manifest."""
        with contextlib.suppress(StoreFailed):
            self._store.delete_below(self._id, self.prefix.rstrip("/"))


class Upload:
    """One object that is being put, in parts; not there before `end`."""

    def __init__(self, ask: Callable[[Callable[[], Any]], Any], store: Any, key: str) -> None:
        self._ask = ask
        self._file = ask(lambda: obstore.open_writer(store, key, buffer_size=PART_BYTES))

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes; they are copied."""
        self._ask(lambda: self._file.write(bytes(content)))

    def end(self) -> None:
        """Put the last part, and the object is there."""
        self._ask(self._file.close)


def _may_use_http() -> bool:
    """Return whether credentials may go unencrypted: to this machine, or where it was said so."""
    host = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).hostname or ""
    is_here = host == "localhost" or host.startswith("127.") or host == "::1"
    return is_here or os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"


def _asked(place: str, call: Callable[[], T]) -> T:
    """Ask the store, and translate its errors."""
    try:
        return call()
    except (NotFoundError, FileNotFoundError):
        raise FileNotFoundError from None
    except (BaseError, OSError) as error:
        raise StoreFailed(
            f"The checkpoint store {place} cannot be reached, or refuses "
            f"({type(error).__name__}); nothing changed. Look after its address, its credentials "
            "and the network between",
            store=place,
        ) from None


def _keys_below(store: Any, prefix: str) -> list[str]:
    return [entry["path"] for entries in store.list(prefix or None) for entry in entries]


def _names_below(store: Any, prefix: str) -> list[str]:
    found = store.list_with_delimiter(prefix or None)["common_prefixes"]
    return [name.rstrip("/").rsplit("/", 1)[-1] for name in found]


def _delete_all(store: Any, prefix: str) -> None:
    keys = _keys_below(store, prefix)
    if keys:
        store.delete(keys)
