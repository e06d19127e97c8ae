"""What is compiled for one model already, so that no push and no pull waits for a compiler twice.

Used on the event loop; compiles on a thread.
"""

from __future__ import annotations

import asyncio

from stepwell_core.encoding import rehearse_encoding
from stepwell_core.engine import Engine
from stepwell_core.rehearsal import rehearse
from stepwell_core.wire import Kind

NATIVE: tuple[str, Kind] = ("native", "gradient")
"""What every model is rehearsed for before it is there."""


class Rehearsals:
    """The dtypes and kinds that one model is ready for.

    Args:
        engine: Of the model, which was rehearsed for `NATIVE`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pushes = {NATIVE}
        self._pulls = {"native"}

    def knows(self, dtype: str, kind: Kind) -> bool:
        """Return whether a push of a dtype and a kind finds everything compiled."""
        return (dtype, kind) in self._pushes

    async def for_push(self, dtype: str, kind: Kind) -> None:
        """Compile for pushes that have not come yet, off the lane."""
        if not self.knows(dtype, kind):
            await asyncio.to_thread(rehearse, self._engine.definition, dtype, kind)
            self._pushes.add((dtype, kind))

    async def for_pull(self, dtype: str) -> None:
        """Compile for a pull dtype that was not asked for yet; before a version is held for it."""
        if dtype not in self._pulls:
            await asyncio.to_thread(rehearse_encoding, self._engine.layout, dtype)
            self._pulls.add(dtype)

    def begin_anew(self, *known: tuple[str, Kind]) -> None:
        """Note that the model's rules are others, for which only so much was rehearsed."""
        self._pushes = set(known)
