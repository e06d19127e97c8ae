"""The models by name: create, open, delete, and recover at start-up."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import structlog
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import (
    DoesNotFit,
    ModelExists,
    ModelNotFound,
    ShuttingDown,
    StepwellError,
)
from stepwell_core.layout import Arenas
from stepwell_core.ledger import Ledger
from stepwell_core.placement import extent
from stepwell_core.rehearsal import rehearse

from stepwell_server import failpoints
from stepwell_server.checkpoints import Schedule
from stepwell_server.creation import (
    check_memory,
    check_same,
    engine_of,
    new_engine,
    write_first,
)
from stepwell_server.history import History
from stepwell_server.leases import Part
from stepwell_server.model import HostedModel
from stepwell_server.recorder import Recorder
from stepwell_server.recovery import Recovery, identity_of, read_model
from stepwell_server.settings import Durability
from stepwell_server.staging import Staging
from stepwell_server.storage import disk, journal
from stepwell_server.storage.folders import DataFolder, ModelFolder
from stepwell_server.storage.journal import Journal
from stepwell_server.storage.manifest import Manifest

log = structlog.get_logger("stepwell")


@dataclass(frozen=True)
class ModelOptions:
    """What holds for every model of one server; see `docs/settings.md`.

    Attributes:
        push_wait_s: How long a push that waits for others is kept before it is answered `waiting`.
        durability: What a crash may take.
        journal_max_bytes: Of one model; None takes what the disk has room for.
        schedule: When checkpoints are written by themselves.
    """

    push_wait_s: float
    durability: Durability
    journal_max_bytes: int | None
    schedule: Schedule


class Registry:
    """All models of one server. Used on the event loop alone.

    Args:
        data: The server's folder.
        options: Of all models.
        staging: Where pushes are received.
    """

    def __init__(self, data: DataFolder, options: ModelOptions, staging: Staging) -> None:
        self._data = data
        self._staging = staging
        self._options = options
        self._models: dict[str, HostedModel] = {}
        self._deleted: dict[str, ModelFolder] = {}  # what is still to be removed of them
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._is_stopping = False

    def __iter__(self) -> Iterator[HostedModel]:
        """Yield the models, by name."""
        return iter([self._models[name] for name in sorted(self._models)])

    def get(self, name: str) -> HostedModel:
        """Return a model.

        Raises:
            ModelNotFound: There is none of that name.
        """
        model = self._models.get(name)
        if model is None:
            names = ", ".join(sorted(self._models)[:8]) or "none"
            raise ModelNotFound(
                f"There is no model {name[:80]!r}; create it first. There are: {names}",
                model=name[:80],
            )
        return model

    async def create(
        self, definition: Definition, parameters: Arenas | None, *, exist_ok: bool
    ) -> tuple[HostedModel, bool]:
        """Create a model, its first checkpoint durable, or return the one that exists.

        Args:
            definition: Of the model.
            parameters: Initial values, owned by the model from now on; None means zeros.
            exist_ok: Return an existing model of the same definition, whatever its values.

        Returns:
            The model, and whether it is new.

        Raises:
            ModelExists: And `exist_ok` is False.
            ModelDiffers: A model of that name exists with another definition.
            DoesNotFit: There is not enough memory, or staging.
        """
        async with self._changing[definition.name]:
            existing = self._models.get(definition.name)
            if existing is not None and not self._is_stopping:
                check_same(existing.definition, definition, exist_ok=exist_ok)
                return existing, False
            return await self._add(definition, lambda: new_engine(definition, parameters)), True

    async def fork(self, model: HostedModel, checkpoint_id: str, name: str) -> HostedModel:
        """Create a model from a checkpoint of another one: all but its sessions.

        Raises:
            CheckpointNotFound, CheckpointInvalid: There is none, or it is damaged.
            ModelExists: There is a model of that name.
            DoesNotFit: There is not enough memory, or staging.
        """
        _, state = await model.checkpoints.read(checkpoint_id)
        definition = replace(state.definition, name=name)
        async with self._changing[name]:
            if name in self._models:
                check_same(self._models[name].definition, definition, exist_ok=False)
            forked = replace(state, definition=definition, ledger=Ledger())
            return await self._add(definition, lambda: engine_of(forked))

    async def _add(self, definition: Definition, new_engine: Callable[[], Engine]) -> HostedModel:
        """Create a model that is not there yet; under its lock."""
        if self._is_stopping:
            raise ShuttingDown("The server is stopping; try again")
        try:
            await self._remove(self._deleted.get(definition.name))
        except (OSError, StepwellError):
            raise ModelExists(
                f"The model {definition.name!r} was deleted, and its disk or its checkpoint store "
                "did not let go of it; delete it again, then create it",
                model=definition.name,
            ) from None
        check_memory(definition)
        part = self._reserve(definition)
        try:
            model = await self._create(definition, new_engine, part)
        except BaseException:
            self._staging.forget(definition.name, part)
            raise
        self._models[definition.name] = model
        log.info("model_created", model=definition.name, bytes=definition.layout.nbytes)
        return model

    async def _create(
        self, definition: Definition, new_engine: Callable[[], Engine], part: Part
    ) -> HostedModel:
        folder = self._data.new_model(definition.name)
        engine = await asyncio.to_thread(new_engine)
        try:
            with disk.needs_room(f"model {definition.name!r}"):
                await asyncio.to_thread(folder.create)
                manifest = await asyncio.to_thread(write_first, engine, folder)
                await asyncio.to_thread(folder.show)
                recorder = await asyncio.to_thread(self._recorder, engine, folder, 0)
                history = await asyncio.to_thread(History.open, folder.history_path)
        except BaseException:
            await self._remove(folder)
            raise
        return self._host(engine, folder, recorder, part, history, manifest)

    def _recorder(self, engine: Engine, folder: ModelFolder, first_number: int) -> Recorder:
        """Open what writes a model's changes down; blocks for as long as the disk takes."""
        options = self._options
        if options.durability == "memory":
            return Recorder(engine.layout, None, first_number)
        identity = identity_of(engine.definition, engine.incarnation)
        return Recorder(
            engine.layout,
            Journal(
                folder.journal_path,
                identity,
                first_number,
                options.durability,
                options.journal_max_bytes,
                on_failure=lambda error: log.critical(
                    "model_read_only", model=engine.definition.name, reason=str(error)
                ),
            ),
        )

    def _host(
        self,
        engine: Engine,
        folder: ModelFolder,
        recorder: Recorder,
        part: Part,
        history: History,
        manifest: Manifest,
        recovery: Recovery | None = None,
    ) -> HostedModel:
        return HostedModel(
            engine,
            folder,
            recorder,
            self._options.push_wait_s,
            part,
            self._exchange,
            self._options.schedule,
            history,
            manifest,
            None if recovery is None else recovery.recovered,
        )

    def _reserve(self, definition: Definition) -> Part:
        """Return the part of the staging that a model's pushes take from.

        Raises:
            DoesNotFit: With the arithmetic.
        """
        unit = extent(definition.layout)
        return self._staging.reserve(definition.name, definition.consistency.most_kept, unit)

    def _exchange(self, definition: Definition, part: Part) -> Part:
        """Reserve for a model's new mode in the place of a part.

        Raises:
            DoesNotFit: With the arithmetic; the part stays.
        """
        name, mode = definition.name, definition.consistency
        return self._staging.exchange(name, part, mode.most_kept, extent(definition.layout))

    def _reserve_what_there_is(self, definition: Definition) -> Part:
        """Do so for a model that exists already, and cannot be refused."""
        try:
            return self._reserve(definition)
        except DoesNotFit as error:
            log.warning("staging_too_small", model=definition.name, advice=error.message)
            return self._staging.adopt(definition.name)

    async def delete(self, name: str) -> None:
        """Delete a model with its checkpoints; if the disk fails it can be tried again.

        Raises:
            ModelNotFound: There is none of that name.
            StoreFailed: The store does not remove its checkpoints. The model is gone, also after a
                restart, and its name is free when this is repeated.
        """
        if name not in self._deleted:
            self.get(name)
        async with self._changing[name]:
            if name not in self._deleted:
                model = self.get(name)  # two may have asked at once
                self._deleted[name] = model.folder
                del self._models[name]
                try:
                    await model.discard()
                except (OSError, StepwellError) as error:  # its journal goes all the same
                    log.warning("journal_not_closed", model=name, exc_info=error)
                finally:
                    model.checkpoints.close()
                    self._staging.forget(name, model.part)
            await self._remove(self._deleted[name])
            log.info("model_deleted", model=name)

    async def _remove(self, folder: ModelFolder | None) -> None:
        """Remove the folder of a model that is gone; one that is left is remembered."""
        if folder is not None:
            self._deleted[folder.name] = folder
            await asyncio.to_thread(folder.remove)
            del self._deleted[folder.name]

    async def recover(self) -> None:
        """Open every model in the data folder from its newest checkpoint that is whole.

        Raises:
            CheckpointInvalid: A model has none; the server then refuses to start.
            JournalInvalid: A journal lacks a record that was on the disk; likewise.
        """
        # All are read before anything is changed: a refused start leaves the folder as it was.
        folders = await asyncio.to_thread(self._data.models)
        kept = [folder for folder in folders if not folder.is_deleted]
        found = [await asyncio.to_thread(read_model, folder) for folder in kept]
        for folder in folders:
            if folder.is_deleted:
                await asyncio.to_thread(folder.remove)
                log.info("model_deleted", model=folder.name)
        opened: dict[str, HostedModel] = {}
        try:
            for recovery in found:
                opened[recovery.folder.name] = await self._open(recovery)
            for recovery in found:
                await asyncio.to_thread(recovery.folder.forget_clean_stop)
        except BaseException:
            await asyncio.gather(
                *(model.discard() for model in opened.values()), return_exceptions=True
            )  # the first error is the one to tell
            raise
        self._models.update(opened)

    async def _open(self, recovery: Recovery) -> HostedModel:
        """Go on with a model that was read, whose clean stop is still noted."""
        folder, engine, number = recovery.folder, recovery.engine, recovery.next_number
        await asyncio.to_thread(folder.prepare)
        await asyncio.to_thread(folder.archive.pin_newer, recovery.manifest.id)
        await asyncio.to_thread(rehearse, engine.definition)
        history = await asyncio.to_thread(History.open, folder.history_path)
        try:
            recorder = await asyncio.to_thread(self._recorder, engine, folder, number)
        except BaseException:
            await asyncio.to_thread(history.close)
            raise
        part = self._reserve_what_there_is(engine.definition)
        model = self._host(engine, folder, recorder, part, history, recovery.manifest, recovery)
        try:
            await self._secure(model, recovery)
        except BaseException:
            await model.discard()
            raise
        _tell_recovered(recovery)
        failpoints.reach("recovery.replayed")
        return model

    async def _secure(self, model: HostedModel, recovery: Recovery) -> None:
        """Write a checkpoint if the one that was read does not do with the journal that begins."""
        is_journaled = self._options.durability != "memory"
        if not recovery.recovered.is_whole and is_journaled:
            await model.checkpoint()  # a journal belongs to a checkpoint of its incarnation
        elif not is_journaled and recovery.recovered.records:
            await model.checkpoint()  # what the journal had is in it, or would be lost
        if not is_journaled:
            await asyncio.to_thread(journal.remove_all, recovery.folder.journal_path)

    def stop_waiting(self) -> None:
        """Answer everyone who waits with 503 and take no more pushes."""
        self._is_stopping = True
        for model in self:
            model.stop_waiting()

    async def stop(self) -> None:
        """Write a last checkpoint of every model and close all of them.

        Raises:
            Exception: A model could not be saved; the log names each, and the others are saved.
        """
        self._is_stopping = True
        models = list(self)
        results = await asyncio.gather(*(model.stop() for model in models), return_exceptions=True)
        for model in models:
            model.checkpoints.close()
        self._models.clear()
        failures = []
        for model, result in zip(models, results, strict=True):
            if isinstance(result, BaseException):
                log.error("model_not_saved", model=model.definition.name, exc_info=result)
                failures.append(result)
        if failures:
            raise failures[0]


def _tell_recovered(recovery: Recovery) -> None:
    name, recovered = recovery.folder.name, recovery.recovered
    log.info("model_recovered", model=name, **recovered.to_json())
    if recovered.cut_off is not None:
        log.warning("journal_cut_off", model=name, at=recovered.cut_off)
