"""A model begins a new history: it is restored, overwritten, or given state from elsewhere.

What comes after is made first (the core's `succession.py`), saved as a checkpoint, and only then is
the model it. So a crash leaves the one history or the other, and nobody sees the new one before it
is durable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from stepwell_core.state import Counters, Snapshot, State
from stepwell_core.store import Version

from stepwell_server import failpoints
from stepwell_server.history import HistoryCut
from stepwell_server.leases import Lease
from stepwell_server.recovery import identity_of, new_incarnation
from stepwell_server.storage.manifest import Manifest
from stepwell_server.storage.stores import Unsettled

if TYPE_CHECKING:
    from stepwell_server.model import HostedModel

T = TypeVar("T")


class Submit(Protocol):
    """Runs a function on the model's lane; see `HostedModel._submit`."""

    def __call__(self, function: Callable[[], T], lease: Lease | None = None) -> Awaitable[T]:
        """Run it."""


class Succession:
    """Begins new histories of one model.

    Args:
        model: The model.
        submit: Runs a function on its lane.
    """

    def __init__(self, model: HostedModel, submit: Submit) -> None:
        self._model = model
        self._submit = submit

    async def begin(
        self,
        successor: Callable[[State], State],
        cause: str,
        checkpoint: str | None = None,
        lease: Lease | None = None,
    ) -> tuple[str, Counters]:
        """Begin a new history; the lane does nothing else meanwhile.

        Args:
            successor: Returns what the model becomes.
            cause: See `HistoryCut`.
            checkpoint: What is restored, if that is the cause.
            lease: Of memory that the successor is made of; lent from here.

        Returns:
            The new incarnation, and the counters.

        Raises:
            ShuttingDown: The model is being closed.
        """
        model = self._model
        model.check_running()

        async def begin() -> tuple[str, Counters]:
            manifest, counters = await self._submit(
                lambda: self._succeed(successor, cause, checkpoint, lease), lease
            )
            model.sessions.renew()
            await model.checkpoints.note(manifest)
            return manifest.incarnation, counters

        return await model.checkpoints.alone(begin)

    def _succeed(
        self,
        successor: Callable[[State], State],
        cause: str,
        checkpoint: str | None,
        lease: Lease | None,
    ) -> tuple[Manifest, Counters]:
        """The lane's part of `begin`."""
        model, engine, recorder = self._model, self._model.engine, self._model.recorder
        try:
            recorder.check()
            state, incarnation = successor(engine.state()), new_incarnation()
            number = recorder.rotate(identity_of(state.definition, incarnation))
            try:
                manifest = model.checkpoints.save(_snapshot(state, incarnation), number)
            except BaseException as error:
                if isinstance(error, Unsettled) and recorder.durability != "memory":
                    recorder.give_up(error.message)  # a start may take either history
                    raise
                with recorder.making():  # what comes next belongs to the old history
                    recorder.rotate(identity_of(engine.definition, engine.incarnation))
                raise
            failpoints.reach("restore.checkpoint_written")
            with recorder.making():
                counters = engine.adopt(state, incarnation)
            model.history.add(HistoryCut(counters.version, cause, incarnation, checkpoint))
        finally:
            if lease is not None:
                lease.release()
        failpoints.reach("restore.adopted")
        model.readers.incarnation = incarnation  # after the version is there; see `hold`
        model.pushes.readmit(())
        return manifest, counters


def _snapshot(state: State, incarnation: str) -> Snapshot:
    """Return a state as the cut of a model that it is not yet; nothing has to be released."""
    version = Version(state.counters.parameters_version, state.parameters, move=0)
    return Snapshot(
        definition=state.definition,
        incarnation=incarnation,
        counters=state.counters,
        ledger=state.ledger,
        parameters=version,
        slots=state.slots,
        gathered=dict(state.gathered),
    )
