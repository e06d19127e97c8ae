"""The ledger in a manifest: JSON with a line for each session, made and read one line at a time.

A model may have 10,000 sessions with 64 results each, and one call of `json` for all of them would
hold the interpreter for seconds, and with it every other thread of the server.
"""

from __future__ import annotations

import json
import re
from typing import Any

import xxhash
from stepwell_core import strict
from stepwell_core.ledger import Ledger

_MARK = re.compile(rb',"ledger_xxh3_128":"([0-9a-f]{32})","ledger":')


def encoded(ledger: Ledger) -> bytes:
    """Return a ledger as text; the ledger may be a cut, which nobody changes meanwhile."""
    head = _dumped({**ledger.numbers(), "sessions": []})
    lines = (_dumped(session.to_json()) for session in ledger.sessions.values())
    return b"%s\n%s\n]}" % (head.removesuffix(b"]}"), b",\n".join(lines))


def decoded(text: bytes) -> Ledger:
    """Return the ledger of a text, whoever wrote it.

    Raises:
        ValueError: It is none.
    """
    lines = text.split(b"\n")
    if lines[-1] != b"]}" or not lines[0].endswith(b'"sessions":['):  # not by `encoded`
        return Ledger.from_json(json.loads(text))
    values = strict.mapping(json.loads(lines[0] + lines[-1]))
    sessions = [json.loads(line.removesuffix(b",")) for line in lines[1:-1] if line]
    values = {**values, "sessions": sessions}
    return Ledger.from_json(values)


def hash_of(text: bytes) -> str:
    """Return the hash by which two ledgers are known to be the same."""
    return xxhash.xxh3_128_hexdigest(text)


def joined(values: dict[str, Any], text: bytes) -> bytes:
    """Return the JSON of a map whose last two values are the hash of a ledger, and the ledger."""
    mark = b',"ledger_xxh3_128":"%s","ledger":' % hash_of(text).encode()
    return b"".join((_dumped(values)[:-1], mark, text, b"}"))


def split(text: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the other values of what `joined` made, and the ledger's text, which is not read.

    Older manifests have the ledger among the others, and no hash: it is read with them.

    Raises:
        ValueError, RecursionError: It is not JSON, not a map, or without a ledger.
    """
    found = _MARK.search(text)  # inside of a string its quotes would have backslashes before them
    if found is None:
        values = json.loads(text)
        if not isinstance(values, dict) or "ledger" not in values:
            raise ValueError("a map with a ledger is wanted")
        return values, _dumped(values.pop("ledger"))
    values, ledger = json.loads(text[: found.start()] + b"}"), text[found.end() : -1]
    if not isinstance(values, dict) or hash_of(ledger).encode() != found[1]:
        raise ValueError("the ledger is another than its hash says")
    return {**values, "ledger_xxh3_128": found[1].decode()}, ledger


def _dumped(values: Any) -> bytes:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=True).encode()
