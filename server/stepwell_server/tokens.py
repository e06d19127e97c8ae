"""Bearer tokens: `sw_<role>_<id>_<secret>`, with a role each; at rest there is only a hash.

Roles include each other: `read` may pull, `push` may also train, `admin` may also create, change
and delete.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from stepwell_core.errors import DataFolderInvalid

from stepwell_server.storage import disk
from stepwell_server.storage.folders import TOKENS_FILE, check_owner

ROLES = ("read", "push", "admin")
"""From the one that may least to the one that may most."""

_FORM = re.compile(r"^sw_(read|push|admin)_([0-9a-f]{8})_([0-9a-f]{64})\Z")
_SHA256 = re.compile(r"^[0-9a-f]{64}\Z")

log = structlog.get_logger("stepwell")


@dataclass(frozen=True)
class TokenRecord:
    """What is kept of a token.

    Attributes:
        id: Eight hexadecimal digits; shown in lists and logs.
        role: One of `ROLES`.
        sha256: Of the whole token, in hexadecimal.
    """

    id: str
    role: str
    sha256: str


def new_token(role: str) -> str:
    """Return a new token; 256 random bits."""
    return f"sw_{role}_{secrets.token_hex(4)}_{secrets.token_hex(32)}"


def record_of(token: str) -> TokenRecord | None:
    """Return what is kept of a token, or None if the text is not of a token's form."""
    match = _FORM.match(token)
    if match is None:
        return None
    return TokenRecord(match[2], match[1], hashlib.sha256(token.encode()).hexdigest())


def _checked(entry: dict[str, Any]) -> TokenRecord:
    record = TokenRecord(entry["id"], entry["role"], entry["sha256"])
    if record.role not in ROLES or not _SHA256.match(record.sha256):
        raise ValueError("not a record of a token")
    return record


class TokenStore:
    """The tokens of a data folder; edited by `stepwell token`, also while a server runs.

    Args:
        data_dir: The folder; made by the first token.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir
        self.path = data_dir / TOKENS_FILE

    def load(self) -> list[TokenRecord]:
        """Return all records.

        Raises:
            DataFolderInvalid: The file cannot be read; no token is valid then.
        """
        try:
            entries: list[dict[str, Any]] = json.loads(self.path.read_bytes())["tokens"]
            return [_checked(entry) for entry in entries]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataFolderInvalid(
                f"The token file {self.path} cannot be read ({type(error).__name__})"
            ) from None

    def save(self, records: list[TokenRecord]) -> None:
        """Replace all records, durably; only the folder's owner, who is the server, may read them.

        Raises:
            OSError: They cannot be written.
        """
        entries = [{"id": r.id, "role": r.role, "sha256": r.sha256} for r in records]
        content = json.dumps({"tokens": entries}, indent=1).encode()
        folder = self._folder.stat()
        # Root makes them for a server of another user, which would refuse all if it could not read.
        owner = (folder.st_uid, folder.st_gid) if os.geteuid() == 0 else None
        disk.write_durably(self.path, content, 0o600, owner)

    def create(self, role: str) -> str:
        """Add a new token and return it; it cannot be shown again.

        Raises:
            DataFolderInvalid: The folder is another program's, or cannot be written.
        """
        token = new_token(role)
        record = record_of(token)
        assert record is not None, "a new token is of a token's form"
        with self._editing(makes=True):
            self.save([*self.load(), record])
        return token

    def revoke(self, token_id: str) -> bool:
        """Remove a token; returns whether there was one.

        Raises:
            DataFolderInvalid: There is no such folder, or it cannot be written.
        """
        with self._editing(makes=False):
            records = self.load()
            kept = [record for record in records if record.id != token_id]
            if len(kept) != len(records):
                self.save(kept)
        return len(kept) != len(records)

    @contextlib.contextmanager
    def _editing(self, *, makes: bool) -> Iterator[None]:
        """Keep other commands from editing in the block, or the last would undo what others did."""
        try:
            if makes:
                disk.make_folders(self._folder)
            # The folder itself, since each edit makes a new file. A server's lock is another one.
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                check_owner(self._folder)
                yield
            finally:
                os.close(folder)
        except OSError as error:
            raise DataFolderInvalid(
                f"Tokens cannot be written in {self._folder} ({error.strerror}); name the server's "
                "folder with --data-dir, and be its owner"
            ) from None


class Authenticator:
    """Knows which role a token has.

    Args:
        store: Read again whenever its file changes, so a revoked token is refused from then on.
        token_file: A secret file with whole tokens, one a line; read again when it changes.

    Raises:
        DataFolderInvalid: `token_file` cannot be read, or has no token in it.
    """

    def __init__(self, store: TokenStore, token_file: Path | None = None) -> None:
        self._store = store
        self._token_file = token_file
        self._records: list[TokenRecord] = []
        self._is_closed = False
        self._stamp = self._stamp_now()
        self._adopt(self._read())

    @property
    def is_open(self) -> bool:
        """Whether there never was a token, so that everyone may do everything.

        Once there was one, the server stays closed, even if the last token is revoked.
        """
        self._refresh()
        return not self._is_closed

    def role_of(self, token: str) -> str | None:
        """Return the role of a token or None, in the same time whether it is valid or not."""
        self._refresh()
        digest = hashlib.sha256(token.encode()).hexdigest()
        role = None
        for record in self._records:
            if hmac.compare_digest(record.sha256, digest):
                role = record.role
        return role

    def _refresh(self) -> None:
        """Read the files again if they changed; one that cannot be read has no valid token in it.

        A stranger who asks at that moment is told nothing of it.
        """
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp  # taken before the files are read: a later change is seen next time
        try:
            self._adopt(self._read())
        except DataFolderInvalid as error:
            log.error("tokens_unreadable", reason=error.message)
            self._records, self._is_closed = [], True

    def _read(self) -> list[TokenRecord]:
        others = [] if self._token_file is None else read_token_file(self._token_file)
        return [*self._store.load(), *others]

    def _adopt(self, records: list[TokenRecord]) -> None:
        self._records = records
        self._is_closed = self._is_closed or bool(records)

    def _stamp_now(self) -> object:
        return _stamp(self._store.path), self._token_file and _stamp(self._token_file)


def read_token_file(path: Path) -> list[TokenRecord]:
    """Return the records of the tokens in a secret file.

    Raises:
        DataFolderInvalid: It cannot be read, or a line is not a token.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataFolderInvalid(
            f"The token file {path} cannot be read ({type(error).__name__})"
        ) from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        record = record_of(line)
        if record is None:
            raise DataFolderInvalid(
                f"Line {number} of the token file {path} is not a token; make one with `stepwell "
                "token create`"
            )
        records.append(record)
    if not records:
        raise DataFolderInvalid(f"The token file {path} has no token in it")
    return records


def _stamp(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
