"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: Its name.
        state: How good that is.
        found: What is so.
        advice: What to do about it; empty if nothing.
    """

    check: str
    state: State
    found: str
    advice: str = ""
