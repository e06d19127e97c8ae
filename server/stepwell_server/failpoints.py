"""Named places where a test kills the server, to see that nothing was lost. Off otherwise.

STEPWELL_FAILPOINT="journal.appended:3" ends the process by SIGKILL, as a crash would, when that
place is reached for the third time. For tests alone. A name that is none ends the process too, with
a sentence: a test that kills nothing would prove nothing.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "STEPWELL_FAILPOINT"

NAMES = frozenset(
    {
        "push.staged",
        "push.committed",
        "journal.before_append",
        "journal.appended",
        "journal.synced",
        "journal.segments_removed",
        "checkpoint.cut",
        "checkpoint.files_written",
        "checkpoint.manifest_written",
        "checkpoint.renamed",
        "checkpoint.verified",
        "restore.checkpoint_written",
        "restore.adopted",
        "recovery.read",
        "recovery.replayed",
    }
)
"""The places that there are."""

_name, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count or 1)

if _name and _name not in NAMES:
    raise SystemExit(f"{VARIABLE} names one of {', '.join(sorted(NAMES))}. Received: {_name[:80]}")


def reach(name: str) -> None:
    """Take note that a place is reached; costs a comparison when no test asks for it."""
    if _name and name == _name:
        _die_at_last()


def _die_at_last() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
