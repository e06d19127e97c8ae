"""The rules of one model, as an administrator changes them while it trains.

Hyperparameters and the mode of consistency hold from between two steps on; both are in the journal
and in the history. Methods are called on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from stepwell_core import keras_config
from stepwell_core.consistency import Consistency
from stepwell_core.definition import Definition
from stepwell_core.errors import DoesNotFit, PreconditionFailed
from stepwell_core.held_model import Room
from stepwell_core.record import ConsistencyChanged, OptimizerChanged
from stepwell_core.rehearsal import rehearse

from stepwell_server.history import changed_hyperparameters, events
from stepwell_server.leases import Part
from stepwell_server.rehearsals import NATIVE

if TYPE_CHECKING:
    from stepwell_server.model import HostedModel


class Rules:
    """The rules of one model.

    Args:
        model: The model.
        change: Runs a change on its lane.
        reserve: Takes from the staging what another mode needs, instead of a part.
    """

    def __init__(
        self,
        model: HostedModel,
        change: Callable[[Callable[[], Any]], Awaitable[Any]],
        reserve: Callable[[Definition, Part], Part],
    ) -> None:
        self._model = model
        self._change = change
        self._reserve = reserve
        self._switching = asyncio.Lock()  # a part belongs to the mode that is, or comes next

    async def set_hyperparameters(self, values: Mapping[str, Any], if_match: str | None) -> None:
        """Change hyperparameters from the next step on.

        Raises:
            PreconditionFailed: The optimizer is not the one that `if_match` names.
            InvalidArgument: See `Engine.prepare_hyperparameters`.
        """
        while not await self._try_hyperparameters(values, if_match):
            pass  # somebody else changed the optimizer in between: look at it again

    async def _try_hyperparameters(self, values: Mapping[str, Any], if_match: str | None) -> bool:
        model, before = self._model, self._model.definition
        if if_match not in (None, "*", optimizer_tag(before)):
            raise PreconditionFailed("The optimizer was changed in between; read it and try again")
        definition, pipeline = model.engine.prepare_hyperparameters(values)
        await asyncio.to_thread(rehearse, definition)

        def adopt() -> bool:
            if model.definition is not before:
                return False
            model.recorder.keep(OptimizerChanged(definition.rule))
            model.engine.adopt_hyperparameters(definition, pipeline)
            model.rehearsals.begin_anew(NATIVE)
            version = model.engine.counters.version
            model.history.add(changed_hyperparameters(version, before, definition))
            return True

        is_adopted: bool = await self._change(adopt)
        return is_adopted

    async def set_consistency(self, mode: Consistency) -> None:
        """Let pushes become steps by another mode, from between two steps on.

        What was gathered in a buffer makes a step before. Pushes that wait are decided on anew.

        Raises:
            DoesNotFit: There is no room for the gradients that the mode may keep waiting, or for
                its sum.
            InvalidInput: See `Engine.stage_gathered`.
        """
        model = self._model
        definition = model.definition.with_consistency(mode)
        await asyncio.to_thread(rehearse, definition)

        def adopt() -> None:
            model.recorder.check()
            room = self._room_in_memory(mode)
            before = model.definition.consistency
            staged = None if mode.gathers else model.engine.stage_gathered()
            if staged is not None:
                model.pushes.commit_or_raise(staged)
            model.recorder.keep(ConsistencyChanged(mode))
            with model.recorder.making():
                waited = model.engine.adopt_consistency(mode, room)
            version = model.engine.counters.version
            model.history.add(events.ConsistencyChanged(version, before.to_json(), mode.to_json()))
            model.pushes.readmit(waited)

        async with self.room_for(definition):
            await self._change(adopt)
        model.rehearsals.begin_anew(NATIVE)
        model.sessions.renew()

    def _room_in_memory(self, mode: Consistency) -> Room:
        """Take what a mode needs before it is written down: a start could not take it either."""
        engine = self._model.engine
        try:
            return engine.prepare_consistency(mode)
        except MemoryError:
            raise DoesNotFit(
                f"Mode {mode.mode!r} needs one more array as large as the parameters, "
                f"{engine.layout.nbytes} bytes, and there is no memory for it; the mode stays",
                needed=engine.layout.nbytes,
            ) from None

    @contextlib.asynccontextmanager
    async def room_for(self, definition: Definition) -> AsyncIterator[None]:
        """Reserve staging for another mode, and give it back if the mode does not come.

        Raises:
            DoesNotFit: There is too little; nothing changed.
        """
        model = self._model
        async with self._switching:
            model.part = self._reserve(definition, model.part)
            try:
                yield
            except BaseException:
                with contextlib.suppress(DoesNotFit):  # others took it; the first error is told
                    model.part = self._reserve(model.definition, model.part)
                raise


def optimizer_tag(definition: Definition) -> str:
    """Return the ETag of a model's optimizer configuration."""
    text = json.dumps(keras_config.serialize(definition.optimizer))
    return f'"{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"'
