"""Leases of the staging: what one is, who asks for it, and the parts of the budget they come from.

`staging.py` says who is given one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from stepwell_core.errors import StepwellError
from stepwell_core.layout import Arenas, Array, Layout
from stepwell_core.placement import place


@dataclass(eq=False)
class Part:
    """A share of the budget, with a queue of its own.

    Attributes:
        capacity: In bytes.
        unit: The largest payload that may use it, in bytes.
        used: In bytes; never more than `capacity`, unless that was lowered meanwhile.
        grants: How many leases there were.
        queue: Who waits, in the order of coming.
    """

    capacity: int
    unit: int
    used: int = 0
    grants: int = 0
    queue: deque[Request] = field(default_factory=deque)

    def refuse(self, error: type[StepwellError], message: str) -> None:
        """Tell all who wait that they wait in vain."""
        while self.queue:
            future = self.queue.popleft().future
            assert future is not None, "who is in a queue waits"
            future.set_exception(error(message))


@dataclass(eq=False)
class Request:
    """Somebody who wants a lease; see `Staging.take`.

    Attributes:
        nbytes: How many.
        part: Of what.
        holder: Who has one lease at a time; None is nobody.
        has_block: Whether a buffer is wanted too.
        is_answer: Whether it is for what is sent.
        future: Of the lease, while its turn has not come.
    """

    nbytes: int
    part: Part
    holder: Hashable | None
    has_block: bool
    is_answer: bool = False
    future: asyncio.Future[Lease] | None = None


class Owner(Protocol):
    """To whom leases come back: the staging."""

    def take_back(self, lease: Lease) -> None:
        """Take back a lease, once; on any thread."""

    def take_back_soon(self, lease: Lease) -> None:
        """The same, from a place where nothing may be locked."""


class Lease:
    """Some bytes of the budget, and a buffer of that size unless none was wanted.

    As a context manager it is released at the end, unless it was lent meanwhile, as to a lane,
    which then releases it: also if who lent it is cancelled, for a lane that has begun goes on.

    Attributes:
        nbytes: How many.
        is_waiting: Whether a push at a barrier keeps it; said when there is no room.
        is_lasting: Whether it is kept for longer than a push takes.
        is_answer: Whether it is for what is sent.
    """

    def __init__(self, owner: Owner, request: Request, block: Array | None) -> None:
        self.nbytes = request.nbytes
        self._is_lent = False
        self.is_waiting = False
        self.is_lasting = False
        self.is_answer = request.is_answer
        self._owner = owner
        self._request: Request | None = request
        self._block = block

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._is_lent:
            self.release()

    def lend(self) -> None:
        """Leave the release to somebody else than the block that this is the context of."""
        self._is_lent = True

    def arenas(self, layout: Layout, dtype: str) -> Arenas:
        """Return uninitialized arenas for a payload; the lease's, and not to be used after it.

        Args:
            layout: What the payload holds; at most `nbytes`.
            dtype: Of its elements.
        """
        assert self._block is not None, "the lease has a buffer, and was not released"
        return place(layout, self._block, dtype)

    def release(self) -> None:
        """Give everything back; once is enough, and more do no harm. May be called on any thread.

        Nothing writes to the buffer and nothing reads it from now on.
        """
        self._owner.take_back(self)

    def release_soon(self) -> None:
        """Release it from a place where nothing may be locked, such as a finalizer."""
        self._owner.take_back_soon(self)

    def end(self) -> tuple[Request | None, Array | None]:
        """Return what it was given for and its buffer, the first time; for its owner alone."""
        request, self._request = self._request, None
        block, self._block = self._block, None
        return request, block
