"""The models by name: create, open, delete, and recover at start-up."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator

import structlog
from stepwell_core.consistency import Sync
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import (
    DataFolderInvalid,
    DoesNotFit,
    ModelDiffers,
    ModelExists,
    ModelNotFound,
    ShuttingDown,
)
from stepwell_core.layout import Arenas
from stepwell_core.pipeline import Pipeline
from stepwell_core.placement import extent
from stepwell_core.rehearsal import rehearse

from stepwell_server import memory
from stepwell_server.leases import Part
from stepwell_server.model import HostedModel, new_incarnation
from stepwell_server.staging import Staging
from stepwell_server.storage.checkpoint import Manifest
from stepwell_server.storage.folders import DataFolder, ModelFolder

log = structlog.get_logger("stepwell")


class Registry:
    """All models of one server. Used on the event loop alone.

    Args:
        data: The server's folder.
        push_wait_s: See `HostedModel`.
        staging: Where pushes are received.
    """

    def __init__(self, data: DataFolder, push_wait_s: float, staging: Staging) -> None:
        self._data = data
        self._staging = staging
        self._push_wait_s = push_wait_s
        self._models: dict[str, HostedModel] = {}
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
        name = definition.name
        async with self._changing[name]:
            if self._is_stopping:
                raise ShuttingDown("The server is stopping; try again")
            existing = self._models.get(name)
            if existing is not None:
                _check_same(existing.definition, definition, exist_ok=exist_ok)
                return existing, False
            check_memory(definition)
            part = self._reserve(definition)
            try:
                model = await self._create(definition, parameters, part)
            except BaseException:
                self._staging.forget(name, part)
                raise
            self._models[name] = model
            log.info("model_created", model=name, bytes=definition.layout.nbytes)
            return model, True

    async def _create(
        self, definition: Definition, parameters: Arenas | None, part: Part
    ) -> HostedModel:
        folder = self._data.new_model(definition.name)
        engine = await asyncio.to_thread(_new_engine, definition, parameters)
        await asyncio.to_thread(folder.create)
        model = HostedModel(engine, folder, self._push_wait_s, part)
        try:
            await model.checkpoint()
            await asyncio.to_thread(folder.show)
        except BaseException:
            await model.discard()
            await asyncio.to_thread(folder.remove)
            raise
        return model

    def _reserve(self, definition: Definition) -> Part:
        """Return the part of the staging that a model's pushes take from.

        Raises:
            DoesNotFit: With the arithmetic.
        """
        unit = extent(definition.layout)
        return self._staging.reserve(definition.name, definition.consistency.most_kept, unit)

    def _reserve_what_there_is(self, definition: Definition) -> Part:
        """Do so for a model that exists already, and cannot be refused."""
        try:
            return self._reserve(definition)
        except DoesNotFit as error:
            log.warning("staging_too_small", model=definition.name, advice=error.message)
            return self._staging.adopt(definition.name)

    async def delete(self, name: str) -> None:
        """Delete a model with its checkpoints.

        Raises:
            ModelNotFound: There is none of that name.
        """
        self.get(name)
        async with self._changing[name]:
            model = self.get(name)  # two may have asked at once
            del self._models[name]
            await model.discard()
            self._staging.forget(name, model.part)
            await asyncio.to_thread(model.folder.remove)
            log.info("model_deleted", model=name)

    async def recover(self) -> None:
        """Open every model in the data folder from its newest checkpoint that is whole.

        Raises:
            CheckpointInvalid: A model has none; the server then refuses to start.
        """
        # All are read before anything is changed: a refused start leaves the folder as it was.
        found = [await asyncio.to_thread(_read, folder) for folder in self._data.models()]
        for folder, manifest, engine in found:
            await asyncio.to_thread(folder.forget_clean_stop)
            await asyncio.to_thread(folder.remove_leftovers)
            await asyncio.to_thread(rehearse, engine.definition)
            part = self._reserve_what_there_is(engine.definition)
            self._models[folder.name] = HostedModel(
                engine, folder, self._push_wait_s, part, manifest
            )
            log.info(
                "model_recovered",
                model=folder.name,
                checkpoint=manifest.id,
                version=manifest.counters.version,
                clean_stop=engine.incarnation == manifest.incarnation,
            )

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
        self._models.clear()
        failures = []
        for model, result in zip(models, results, strict=True):
            if isinstance(result, BaseException):
                log.error("model_not_saved", model=model.definition.name, exc_info=result)
                failures.append(result)
        if failures:
            raise failures[0]


def check_memory(definition: Definition) -> None:
    """Refuse a model that this machine has no memory for.

    Raises:
        DoesNotFit: With the arithmetic.
    """
    layout = definition.layout
    slots = len(Pipeline(layout, definition.rule).slot_values)
    sums = int(isinstance(definition.consistency, Sync))
    needed = layout.nbytes * (2 + slots + sums)
    available = memory.available_bytes()
    if needed > available:
        raise DoesNotFit(
            f"Parameters of {layout.nbytes} bytes need 2 buffers, {slots} slots and {sums} sums of "
            f"gradients, together {needed} bytes; {available} are available",
            needed=needed,
            available=available,
        )


def _read(folder: ModelFolder) -> tuple[ModelFolder, Manifest, Engine]:
    """Read a model's newest checkpoint that is whole; changes nothing."""
    manifest, state = folder.newest()
    if manifest.definition.name != folder.name:
        raise DataFolderInvalid(
            f"The folder {folder.path} holds a model that calls itself "
            f"{manifest.definition.name!r}; rename the folder back"
        )
    is_clean = folder.clean_stop() == manifest.id
    engine = Engine(state, manifest.incarnation if is_clean else new_incarnation())
    return folder, manifest, engine


def _new_engine(definition: Definition, parameters: Arenas | None) -> Engine:
    engine = Engine.create(
        definition,
        definition.layout.new_arenas() if parameters is None else parameters,
        new_incarnation(),
    )
    rehearse(definition)
    return engine


def _check_same(existing: Definition, wanted: Definition, *, exist_ok: bool) -> None:
    if not exist_ok:
        raise ModelExists(
            f"There is a model {wanted.name!r} already; open it, delete it, or create with "
            "exist_ok",
            model=wanted.name,
        )
    differences = existing.differences(wanted)
    if differences:
        raise ModelDiffers(
            f"There is a model {wanted.name!r} already, and it was created with other: "
            f"{', '.join(differences)}. Use its definition, or another name",
            model=wanted.name,
            differences=differences,
        )
