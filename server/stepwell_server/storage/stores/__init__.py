"""Where checkpoints are kept: one contract, a file for each kind of place.

base.py     the contract
local.py    folders on a local disk
objects.py  an object store: S3 and what speaks like it, Google Cloud Storage, Azure
"""

from stepwell_server.storage.stores.base import (
    CheckpointStore,
    Draft,
    DraftFile,
    ModelStore,
    Unsettled,
)
from stepwell_server.storage.stores.local import LocalStore
from stepwell_server.storage.stores.opening import open_store

__all__ = [
    "CheckpointStore",
    "Draft",
    "DraftFile",
    "LocalStore",
    "ModelStore",
    "Unsettled",
    "open_store",
]
