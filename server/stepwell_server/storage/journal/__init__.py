"""The journal of a model: its changes in order, each durable before or soon after it is made."""

from stepwell_server.storage.journal.folder import (
    boot_id,
    check_newest,
    default_max_bytes,
    remove_all,
    sync_all,
)
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
    "check_newest",
    "default_max_bytes",
    "read",
    "remove_all",
    "sync_all",
]
