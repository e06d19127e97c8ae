"""Memory for payloads on their way: a budget of bytes, who waits for some, and buffers used again.

A payload takes a *lease* after its header was checked and before the first of its bytes is read.
While there is no room, the body waits unread in its socket, behind those that came before. The
lease is released when nobody writes to the buffer any more and nobody reads it: for a push, when
it is settled or refused. A push that waits at a barrier keeps its lease, so a model with a barrier
has a *reserve* that nobody else can use; else other models' pushes could take the memory that its
last worker needs, and it would wait for ever.

A new buffer of 100 MB costs 10 to 25 ms of page faults, a used one nothing. Idle buffers count in
the budget and make room as soon as somebody needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Hashable

from stepwell_core.errors import (
    BodyTooLarge,
    DoesNotFit,
    ShuttingDown,
    StagingFull,
    Unavailable,
)

from stepwell_server.counts import Counts
from stepwell_server.idle import IdleBlocks
from stepwell_server.leases import Lease, Part, Request

WAIT_S = 10.0  # a step of a large model is over by then, so that others come to their turn
LONGEST_WAIT_S = 25.0  # while others do come to theirs; then a client would give up its sending
TRIM_S = 60.0  # buffers that nobody used for this long, or twice as long, are given back

_IS_GONE = "The model is there no more; look, and try again"


class Staging:
    """The budget of one server. On the event loop, but for `Lease.release`.

    Args:
        budget_bytes: How many bytes of payloads may be in memory at once.
        counts: Of the server.
    """

    def __init__(self, budget_bytes: int, counts: Counts) -> None:
        self.budget_bytes = budget_bytes
        self._counts = counts
        self._shared = Part(budget_bytes, budget_bytes)
        self._reserves: list[Part] = []
        self._largest: dict[Hashable, int] = {}
        self._leases: set[Lease] = set()
        self._holders: set[Hashable] = set()
        self._used = 0
        self._idle = IdleBlocks()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    @property
    def shared(self) -> Part:
        """What is not reserved; for models without a reserve, and for their values."""
        return self._shared

    @property
    def leases(self) -> int:
        """How many leases are out."""
        return len(self._leases)

    @property
    def used_bytes(self) -> int:
        """How much is leased."""
        return self._used

    @property
    def idle_bytes(self) -> int:
        """How much is in buffers that nobody uses at the moment."""
        return self._idle.nbytes

    # Reserves

    def reserve(self, model: Hashable, count: int, unit: int) -> Part:
        """Make sure that a model's pushes can be received; return the part that they take from.

        Args:
            model: Names it for `forget`.
            count: How many payloads wait for each other at most; 0 if none ever waits.
            unit: The size of one, in bytes.

        Raises:
            DoesNotFit: The budget is too small.
        """
        reserved = sum(part.capacity for part in self._reserves)
        largest = max(unit, self._largest_payload())
        needed = reserved + count * unit + largest
        if needed > self.budget_bytes:
            barrier = f"{count} x {unit} bytes for the gradients of one step, " if count else ""
            raise DoesNotFit(
                f"The server keeps {self.budget_bytes} bytes for payloads on their way. The model "
                f"needs {barrier}other models have reserved {reserved}, and {largest} are for the "
                f"largest payload of any model: together {needed}. Start the server with "
                f"--staging-bytes {needed} or more"
                + (', or use Sync(reduction="arrival")' if count else ""),
                needed=needed,
                available=self.budget_bytes,
            )
        self._largest[model] = unit
        if not count:
            return self._shared
        part = Part(count * unit, unit)
        self._reserves.append(part)
        self._shared.capacity -= part.capacity
        return part

    def exchange(self, model: Hashable, part: Part, count: int, unit: int) -> Part:
        """Reserve anew for a model, in the place of its present part; see `reserve`.

        What is leased of that stays leased, and who waits for it is refused and comes again.

        Raises:
            DoesNotFit: The budget is too small; the part stays.
        """
        if part is self._shared:
            return self.reserve(model, count, unit)
        if count * unit == part.capacity:
            return part
        self._take_away(part)
        try:
            exchanged = self.reserve(model, count, unit)
        except DoesNotFit:
            self._reserves.append(part)
            self._shared.capacity -= part.capacity
            raise
        part.refuse(Unavailable, "The model's mode was changed; send it again")
        self._serve()
        return exchanged

    def _take_away(self, part: Part) -> None:
        self._reserves.remove(part)
        self._shared.capacity += part.capacity

    def _largest_payload(self) -> int:
        return max(self._largest.values(), default=0)

    def adopt(self, model: Hashable) -> Part:
        """Take on a model that nothing can be reserved for: it shares what is not reserved."""
        self._largest[model] = 0
        return self._shared

    def forget(self, model: Hashable, part: Part) -> None:
        """Take a reserve back and refuse who waits for it; what is leased of it stays leased."""
        del self._largest[model]
        if part is not self._shared:
            self._take_away(part)
            part.refuse(Unavailable, _IS_GONE)
        self._serve()

    # Leases

    async def take(
        self,
        nbytes: int,
        part: Part | None = None,
        holder: Hashable | None = None,
        *,
        has_block: bool = True,
    ) -> Lease:
        """Return a lease, waiting for others to release theirs.

        Args:
            nbytes: How much is wanted.
            part: Of whom; a payload that is larger than its unit is everybody's, as is None.
            holder: Who has one lease at a time.
            has_block: Whether a buffer is wanted too, or memory of the caller's own is to be
                accounted for.

        Raises:
            BodyTooLarge: It is more than there can ever be.
            StagingFull: There was no room for 10 s, or for 25 s while others got some.
            Unavailable: The part was taken back: its model is deleted.
            ShuttingDown: The server stops.
        """
        if part is None or nbytes > part.unit:
            self._check_wide(nbytes, part)
            part = self._shared
        return await self._take(Request(nbytes, part, holder, has_block))

    def _check_wide(self, nbytes: int, part: Part | None) -> None:
        """Refuse a payload of which a barrier cannot have as many as it waits for.

        Raises:
            BodyTooLarge: They would wait for each other for ever.
        """
        if part not in self._reserves:
            return
        count = part.capacity // part.unit
        if count * nbytes > self._shared.capacity:
            raise BodyTooLarge(
                f"The server reserved {count} x {part.unit} bytes for the gradients of one step of "
                f"this model. {count} of {nbytes} bytes do not fit beside them; send gradients in "
                "the model's own dtype, or narrower",
                limit=part.unit,
            )

    async def take_for_answer(self, nbytes: int) -> Lease:
        """Return a lease for an answer's own copy of tensors, or for all there is if that is less.

        A slow reader keeps it for long, so answers together leave room for the largest payload of
        any model; but one at a time is always made.

        Raises:
            StagingFull, ShuttingDown: As `take`.
        """
        nbytes = min(nbytes, self._shared.capacity)
        return await self._take(
            Request(nbytes, self._shared, None, has_block=False, is_answer=True)
        )

    async def _take(self, request: Request) -> Lease:
        self._check(request.nbytes, request.part)
        self._know_loop()
        lease = None if request.part.queue else self._grant(request)
        return await self._wait(request) if lease is None else lease

    def _know_loop(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.call_later(TRIM_S, self._trim)

    def try_take(self, nbytes: int) -> Lease | None:
        """Return a lease for memory of the caller's own that is used for long; None without room.

        Together such leases take half of what is not reserved at most, and leave room for the
        largest payload of any model, so that payloads still come.
        """
        with self._lock:
            lasting = sum(lease.nbytes for lease in self._leases if lease.is_lasting)
        most = min(self._shared.capacity // 2, self._shared.capacity - self._largest_payload())
        if self._is_closed or self._shared.queue or lasting + nbytes > most:
            return None
        self._know_loop()
        lease = self._grant(Request(nbytes, self._shared, None, has_block=False))
        if lease is not None:
            lease.is_lasting = True
        return lease

    def _check(self, nbytes: int, part: Part) -> None:
        if self._is_closed:
            raise ShuttingDown("The server is stopping; send it again")
        if part is not self._shared and part not in self._reserves:
            raise Unavailable(_IS_GONE)
        if nbytes > part.capacity:
            raise BodyTooLarge(
                f"A payload of {nbytes} bytes is more than the {part.capacity} of "
                f"{self.budget_bytes} bytes that the server has for payloads on their way and did "
                "not reserve for models with a barrier. Push a narrower dtype or fewer tensors at "
                "a time, or start the server with a larger --staging-bytes",
                limit=part.capacity,
            )

    async def _wait(self, request: Request) -> Lease:
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        request.future = future
        request.part.queue.append(request)
        self._serve()
        try:
            await self._while_it_moves(request, future)
        except BaseException:
            if future.done() and future.exception() is None:
                future.result().release()
            raise
        finally:
            if not future.done():
                request.part.queue.remove(request)
                self._serve()
        if future.done():
            return future.result()
        self._counts.staging_refused += 1
        raise self._full(request)

    async def _while_it_moves(self, request: Request, future: asyncio.Future[Lease]) -> None:
        """Wait for a lease, unless none of the part is granted to anybody for too long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST_WAIT_S
        while (left_s := end - loop.time()) > 0:
            grants = request.part.grants
            await asyncio.wait([future], timeout=min(WAIT_S, left_s))
            if future.done() or request.part.grants == grants:
                return

    def _full(self, request: Request) -> StagingFull:
        with self._lock:
            leases = [lease for lease in self._leases if not lease.is_waiting]
            flowing, waiting = sum(lease.nbytes for lease in leases), len(self._leases)
            in_barriers = self._used - flowing
        if request.holder in self._holders:
            reason = "another payload of this session is still on its way"
        else:
            reason = (
                f"{flowing} bytes are being received or applied, {in_barriers} belong to "
                f"{waiting - len(leases)} pushes that wait for others"
            )
        return StagingFull(
            f"No room came free in time for a payload of {request.nbytes} bytes: of "
            f"{request.part.capacity} bytes that it may use, out of {self.budget_bytes}, {reason}. "
            "Try again; if it lasts, start the server with a larger --staging-bytes",
            asked=request.nbytes,
            budget=self.budget_bytes,
        )

    def _grant(self, request: Request) -> Lease | None:
        part, nbytes = request.part, request.nbytes
        with self._lock:
            is_room = part.used + nbytes <= part.capacity
            if not is_room or self._used + nbytes > self.budget_bytes:
                return None
            if request.holder in self._holders or self._is_crowded(request):
                return None
            left = self.budget_bytes - self._used - nbytes
            self._idle.shrink(left, wanted=nbytes if request.has_block else 0)
            block = self._idle.take(nbytes) if request.has_block else None
            lease = Lease(self, request, block)
            self._leases.add(lease)
            if request.holder is not None:
                self._holders.add(request.holder)
            part.used += nbytes
            part.grants += 1
            self._used += nbytes
            return lease

    def _is_crowded(self, request: Request) -> bool:
        """Whether an answer would take the room of payloads; under the lock."""
        if not (request.is_answer and any(lease.is_answer for lease in self._leases)):
            return False
        used = sum(lease.nbytes for lease in self._leases if lease.is_answer or lease.is_lasting)
        return used + request.nbytes > self._shared.capacity - self._largest_payload()

    def take_back(self, lease: Lease) -> None:
        """See `Lease.release`."""
        with self._lock:
            request, block = lease.end()
            if request is None:
                return
            self._leases.remove(lease)
            self._holders.discard(request.holder)
            self._used -= request.nbytes
            request.part.used -= request.nbytes
            if block is not None and not self._is_closed:
                self._idle.keep(block)
            is_awaited = any(part.queue for part in (self._shared, *self._reserves))
        if is_awaited and self._loop is not None:
            self._loop.call_soon_threadsafe(self._serve)

    def take_back_soon(self, lease: Lease) -> None:
        """See `Lease.release_soon`."""
        assert self._loop is not None, "the loop is known since the first lease"
        with contextlib.suppress(RuntimeError):  # it is closed, and the staging with it
            self._loop.call_soon_threadsafe(self.take_back, lease)

    def _serve(self) -> None:
        """Give leases to those who wait, each part in its order."""
        for part in (self._shared, *self._reserves):
            for request in list(part.queue):
                lease = self._grant(request)
                if lease is not None:
                    part.queue.remove(request)
                    assert request.future is not None, "who is in a queue waits"
                    request.future.set_result(lease)
                elif not self._lets_others_by(request):
                    break

    def _lets_others_by(self, request: Request) -> bool:
        """Whether it waits for a body of its own session, or for other answers, not for room."""
        with self._lock:
            return request.holder in self._holders or self._is_crowded(request)

    # The end

    def close(self) -> None:
        """Refuse who waits and who comes; what is leased stays leased until it is released."""
        self._is_closed = True
        for part in (self._shared, *self._reserves):
            part.refuse(ShuttingDown, "The server is stopping; try again")

    def _trim(self) -> None:
        """Give back what was not used since the last time, and come again."""
        with self._lock:
            self._idle.trim()
        if self._loop is not None and not self._is_closed:
            self._loop.call_later(TRIM_S, self._trim)
