"""The journal of one model: its changes, in order, each written down before it is made.

    format.py    what a segment and a record look like, as pure functions
    segment.py   one file that is written: blocks, large payloads past the page cache
    writer.py    `Journal`: append, sync, rotate, let go of what a checkpoint holds
    reader.py    `read`: what a crash left, for recovery

docs/journal-format.md is the format for other readers.
"""

from stepwell_server.storage.journal.folder import boot_id, default_max_bytes, remove_all, sync_all
from stepwell_server.storage.journal.format import Identity
from stepwell_server.storage.journal.reader import LastSegment, Reading, Record, read
from stepwell_server.storage.journal.writer import Journal

__all__ = [
    "Identity",
    "Journal",
    "LastSegment",
    "Reading",
    "Record",
    "boot_id",
    "default_max_bytes",
    "read",
    "remove_all",
    "sync_all",
]
