"""Where compiled kernels are kept: a private folder, and another one for other sources.

Numba sees that a cached function is out of date by the file it stands in. Our kernels are closures
that stand in `step.py` and run a rule that stands elsewhere, so to Numba an edited rule looks like
the old one. The folder's name therefore has a hash of all sources of this package in it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


@cache
def cache_folder() -> Path:
    """Return the folder for compiled kernels; asked for once a process.

    Its parent is `STEPWELL_CACHE_DIR`, else `XDG_CACHE_HOME/stepwell`, else `~/.cache/stepwell`.
    Numba's index files are pickles, the one place where Stepwell reads any, so the folder must
    belong to this user and be closed to others; if it does not, a new temporary folder takes its
    place, and kernels are compiled anew: that costs seconds, not safety.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    parent = Path(os.environ.get("STEPWELL_CACHE_DIR") or os.path.join(home, "stepwell"))
    folder = parent / f"kernels-{source_hash()}"
    return folder if _is_private(folder) else Path(tempfile.mkdtemp(prefix="stepwell-kernels-"))


def source_hash() -> str:
    """Return a hash of all sources of this package and of the compiler's versions."""
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    for package in ("numba", "llvmlite", "numpy"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()


def _is_private(folder: Path) -> bool:
    """Make the folder if need be; return whether this user, and nobody else, can write there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()  # not what a link points to: somebody else may have laid the link
    except OSError:  # no home, a read-only disk, a file in the way
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and not stat.S_IMODE(status.st_mode) & 0o077
        and os.access(folder, os.W_OK)
    )
