"""The arrays of one model: its parameters, by version, and its slots.

Readers and the writer do not stop each other. A reader *holds* the current version and reads its
arenas for as long as it likes. The writer *claims* where the next version goes: in place if nobody
holds the current one, else into a spare buffer; then it *publishes*. A version never changes while
it is held.

The lock is held for nanoseconds, around `hold`, `release`, `claim` and `publish`. `hold` gives
nothing while a step is writing in place; the reader comes again when it is published, and the next
steps then use a spare.

A hold that would leave the writer no buffer is refused, so the writer never waits for a reader.

Where buffers come from may change: `move` brings the parameters into memory of another kind, such
as one that other processes can see.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from stepwell_core.errors import VersionsExhausted
from stepwell_core.layout import Arenas, Layout

SPARE_STEPS_AFTER_WAIT = 16
"""How many steps use a spare after a reader had to wait for one in place."""

SMALL_MODEL_BYTES = 1 << 30


class Version:
    """One version of the parameters.

    Attributes:
        number: The model's version at which these bytes came to be.
        arenas: The parameters; read only, and only between `hold` and `release`.
    """

    __slots__ = ("arenas", "holders", "is_abandoned", "move", "number")

    def __init__(self, number: int, arenas: Arenas, move: int) -> None:
        self.number = number
        self.arenas = arenas
        self.move = move  # the last one of the store when the buffer was allocated
        self.holders = 0
        self.is_abandoned = False  # its buffer is not to be written again


class Claim:
    """Where the next version comes from and goes to; `source` is `target` when it is in place."""

    __slots__ = ("source", "target")

    def __init__(self, source: Arenas, target: Arenas) -> None:
        self.source = source
        self.target = target


class Store:
    """Parameters and slots of one model. One writer; readers on any thread.

    Args:
        layout: Of all arenas.
        parameters: Owned by the store from now on.
        number: Their version.
        slots: Arenas by slot name; owned by the store. Written by the writer alone, without
            versions.
        spares: Buffers beside the current version; by default 3, and 1 for models of 1 GiB or more.
    """

    def __init__(
        self,
        layout: Layout,
        parameters: Arenas,
        number: int,
        slots: Mapping[str, Arenas],
        spares: int | None = None,
    ) -> None:
        self.layout = layout
        self.slots = dict(slots)
        if spares is None:
            spares = 3 if layout.nbytes < SMALL_MODEL_BYTES else 1
        self._spare_limit = spares
        self._allocate: Callable[[], Arenas] = lambda: layout.new_arenas(None)
        self._spares: list[Arenas] = []
        self._moves = 0
        self._current = Version(number, parameters, self._moves)
        self._old_held = 0
        self._claim: Claim | None = None
        self._spare_steps = 0
        self._lock = threading.Lock()

    @property
    def number(self) -> int:
        """The version of the parameters that a reader would get."""
        return self._current.number

    @property
    def current(self) -> Arenas:
        """The parameters as they are, for the writer to read."""
        return self._current.arenas

    @property
    def is_in_place(self) -> bool:
        """Whether a step is writing the current version, so that nobody can hold it."""
        with self._lock:
            return self._is_in_place()

    def _is_in_place(self) -> bool:
        return self._claim is not None and self._claim.target is self._current.arenas

    def hold(self, *, is_reserved: bool = False) -> Version | None:
        """Hold the current version, or return None while a step is writing it in place.

        Args:
            is_reserved: Never refuse: a checkpoint must not have to wait for slow readers. At most
                one such hold at a time, for which the writer allocates one buffer more.

        Raises:
            VersionsExhausted: Readers hold so many old versions that the writer needs the rest.
        """
        with self._lock:
            current = self._current
            if self._is_in_place():
                self._spare_steps = SPARE_STEPS_AFTER_WAIT
                return None
            if not (is_reserved or current.holders) and self._old_held >= self._spare_limit:
                raise VersionsExhausted(
                    f"Slow readers hold {self._old_held} older versions of the parameters; "
                    "try again"
                )
            current.holders += 1
            return current

    def release(self, version: Version) -> None:
        """Give back what `hold` returned, once."""
        with self._lock:
            version.holders -= 1
            if not version.holders and version is not self._current:
                self._old_held -= 1
                self._keep_spare(version)

    def abandon(self, version: Version) -> None:
        """Give back what `hold` returned, for a reader that may go on reading all the same.

        Its buffer is never written again. It belongs to the reader from now on.
        """
        with self._lock:
            version.is_abandoned = True
        self.release(version)

    def claim(self) -> Claim:
        """Begin the next version; the writer alone calls this, and then `publish`."""
        with self._lock:
            current = self._current
            has_spare = self._old_held < self._spare_limit
            is_in_use = current.holders or current.is_abandoned
            if not (is_in_use or (has_spare and self._spare_steps)):
                self._claim = Claim(current.arenas, current.arenas)
                return self._claim
            self._spare_steps = max(self._spare_steps - 1, 0)
            target = self._spares.pop() if self._spares else None
        # Large buffers take their time, in which readers go on.
        claim = Claim(current.arenas, self._allocate() if target is None else target)
        with self._lock:
            self._claim = claim
        return claim

    def publish(self, number: int) -> None:
        """End what `claim` began: readers get the new version from now on."""
        with self._lock:
            claim, old = self._claim, self._current
            assert claim is not None, "publish() comes after claim()"
            self._claim = None
            if claim.target is old.arenas:
                old.number = number
                return
            self._current = Version(number, claim.target, self._moves)
            if old.holders:
                self._old_held += 1
            else:
                self._keep_spare(old)

    def move(self, target: Arenas, allocate: Callable[[], Arenas]) -> None:
        """Copy the current version elsewhere, and take buffers from there; the writer alone.

        O(parameters). Readers go on, and buffers from where they came before are dropped with the
        last of them.

        Args:
            target: Arenas of the layout; owned by the store from now on.
            allocate: Returns more such arenas, uninitialized; called by the writer.
        """
        with self._lock:
            self._moves += 1
            self._spares = [target]
            self._current.is_abandoned = True
            self._allocate = allocate
        claim = self.claim()
        for dtype, array in claim.source.items():
            np.copyto(claim.target[dtype], array)
        self.publish(self.number)

    def _keep_spare(self, version: Version) -> None:
        has_room = len(self._spares) + self._old_held < self._spare_limit
        if has_room and version.move == self._moves and not version.is_abandoned:
            self._spares.append(version.arenas)
