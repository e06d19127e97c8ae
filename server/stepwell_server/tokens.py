"""Bearer tokens: `sw_<role>_<id>_<secret>`, with a role each; at rest there is only a hash.

Roles include each other: `read` may pull, `push` may also train, `admin` may also create, change
and delete.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell_core.errors import DataFolderInvalid

from stepwell_server.storage import disk

ROLES = ("read", "push", "admin")
"""From the one that may least to the one that may most."""

_FORM = re.compile(r"^sw_(read|push|admin)_([0-9a-f]{8})_([0-9a-f]{64})\Z")
TOKENS_FILE = "tokens.json"


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


class TokenStore:
    """The tokens of a data folder, `tokens.json`; edited by `stepwell token`, also while a server
    runs.
    """

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / TOKENS_FILE

    def load(self) -> list[TokenRecord]:
        """Return all records.

        Raises:
            DataFolderInvalid: The file cannot be read; no token is valid then.
        """
        try:
            entries: list[dict[str, Any]] = json.loads(self.path.read_bytes())["tokens"]
            return [TokenRecord(entry["id"], entry["role"], entry["sha256"]) for entry in entries]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataFolderInvalid(
                f"The token file {self.path} cannot be read ({type(error).__name__})"
            ) from None

    def save(self, records: list[TokenRecord]) -> None:
        """Replace all records, durably; only the owner may read the file."""
        entries = [{"id": r.id, "role": r.role, "sha256": r.sha256} for r in records]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        previous = os.umask(0o077)
        try:
            disk.write_durably(self.path, json.dumps({"tokens": entries}, indent=1).encode())
        finally:
            os.umask(previous)

    def create(self, role: str) -> str:
        """Add a new token and return it; it cannot be shown again."""
        token = new_token(role)
        record = record_of(token)
        assert record is not None, "a new token is of a token's form"
        self.save([*self.load(), record])
        return token

    def revoke(self, token_id: str) -> bool:
        """Remove a token; returns whether there was one."""
        records = self.load()
        kept = [record for record in records if record.id != token_id]
        if len(kept) != len(records):
            self.save(kept)
        return len(kept) != len(records)


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
        self._stamp: object = None
        self._is_closed = False
        self._refresh()

    @property
    def is_open(self) -> bool:
        """Whether there never was a token, so that everyone may do everything.

        Once there was one, the server stays closed, even if the last token is revoked.
        """
        self._refresh()
        return not self._is_closed

    def role_of(self, token: str) -> str | None:
        """Return the role of a token, or None if it is not valid; takes the same time either
        way.
        """
        self._refresh()
        digest = hashlib.sha256(token.encode()).hexdigest()
        role = None
        for record in self._records:
            if hmac.compare_digest(record.sha256, digest):
                role = record.role
        return role

    def _refresh(self) -> None:
        stamp = [_stamp(self._store.path), self._token_file and _stamp(self._token_file)]
        if stamp != self._stamp:
            records = self._store.load()
            if self._token_file is not None:
                records = [*records, *read_token_file(self._token_file)]
            self._records, self._stamp = records, stamp
            self._is_closed = self._is_closed or bool(records)


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
                f"Line {number} of the token file {path} is not a token; make one with `stepwell token create`"
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
