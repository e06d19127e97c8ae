"""What comes before a model: does it fit, is there one already, its engine and first checkpoint.

All of it blocks, or is done at once; the registry calls it.
"""

from __future__ import annotations

from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.errors import DoesNotFit, ModelDiffers, ModelExists
from stepwell_core.layout import Arenas
from stepwell_core.rehearsal import rehearse
from stepwell_core.state import State, pipeline_of, slot_names

from stepwell_server import memory
from stepwell_server.recovery import new_incarnation
from stepwell_server.storage.folders import ModelFolder
from stepwell_server.storage.manifest import Manifest


def check_memory(definition: Definition) -> None:
    """Refuse a model that this machine has no memory for.

    Raises:
        DoesNotFit: With the arithmetic.
    """
    layout = definition.layout
    slots = len(slot_names(definition, pipeline_of(definition)))
    sums = int(definition.consistency.most_in_step > 1)
    needed = layout.nbytes * (2 + slots + sums)
    available = memory.available_bytes()
    if needed > available:
        raise DoesNotFit(
            f"Parameters of {layout.nbytes} bytes need 2 buffers, {slots} slots and {sums} sums of "
            f"gradients, together {needed} bytes; {available} are available",
            needed=needed,
            available=available,
        )


def write_first(engine: Engine, folder: ModelFolder) -> Manifest:
    """Write the first checkpoint of a model that nobody uses yet."""
    snapshot = engine.snapshot({n: engine.layout.new_arenas(None) for n in engine.store.slots})
    try:
        return folder.archive.write(snapshot, 0)
    finally:
        engine.store.release(snapshot.parameters)


def engine_of(state: State) -> Engine:
    """Return the engine of a model that begins with a state; compiles."""
    engine = Engine(state, new_incarnation())
    rehearse(engine.definition)
    return engine


def new_engine(definition: Definition, parameters: Arenas | None) -> Engine:
    """Return the engine of a new model, zeros if it has no parameters yet; compiles."""
    engine = Engine.create(
        definition,
        definition.layout.new_arenas() if parameters is None else parameters,
        new_incarnation(),
    )
    rehearse(definition)
    return engine


def check_same(existing: Definition, wanted: Definition, *, exist_ok: bool) -> None:
    """Refuse to create a model that is there already.

    Raises:
        ModelExists: And `exist_ok` is False.
        ModelDiffers: It was created with another definition.
    """
    if not exist_ok:
        raise ModelExists(
            f"There is a model {wanted.name!r} already; open it, delete it, choose another name, "
            "or create with exist_ok",
            model=wanted.name,
        )
    contrast = existing.contrast(wanted)
    if contrast:
        raise ModelDiffers(
            f"There is a model {wanted.name!r} already, and it was created with other: "
            f"{', '.join(contrast.values())}. Use its definition, or another name. What may change "
            "while it trains is changed by set_hyperparameters and set_consistency",
            model=wanted.name,
            differences=list(contrast),
        )
