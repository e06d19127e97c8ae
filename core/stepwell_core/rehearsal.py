"""Compiles what a model's pushes will need before they come: a rehearsal on a tiny model.

The rehearsal goes through the engine itself, so whatever an optimizer, a consistency mode and a
payload's dtype have need of is compiled, or loaded from the cache: the step in place and into a
spare buffer, with and without decay, for present and missing tensors, the mean of several
gradients, the test for NaN, the norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.layout import Layout, Tensor
from stepwell_core.norms import ParametersBefore, gradient_norm
from stepwell_core.pipeline import Gradient
from stepwell_core.push import Push, Staged
from stepwell_core.session import Session
from stepwell_core.wire import Kind

_WORKERS = ("a", "b")
_PARTS = ("decaying", "excluded", "missing")


def rehearse(definition: Definition, dtype: str = "native", kind: Kind = "gradient") -> None:
    """Compile the kernels of a model; takes seconds the first time on a machine, else milliseconds.

    Safe in any thread: it touches no model but its own.

    Args:
        definition: Of the model that will get the pushes.
        dtype: What their elements are.
        kind: What their tensors are.
    """
    engine = Engine.create(_miniature(definition), _miniature(definition).layout.new_arenas(), "")
    sessions = [engine.open_session(worker)[0] for worker in _WORKERS]
    pushes = 2 * (definition.rule.gradient_accumulation_steps or 1)
    _push_from(engine, sessions, range(pushes), dtype, kind)
    if definition.consistency.most_in_step > 1:  # one may be left alone at its barrier
        engine.close_session(sessions[1].worker, sessions[1].epoch)
        _push_from(engine, sessions[:1], range(pushes, 2 * pushes), dtype, kind)


def _push_from(
    engine: Engine, sessions: Sequence[Session], sequences: range, dtype: str, kind: Kind
) -> None:
    """Make pushes of all sessions; the second half of them while somebody reads."""
    for sequence in sequences:
        # In place if nobody holds the version, else into a spare buffer.
        is_held = sequence - sequences.start >= len(sequences) // 2
        held = engine.store.hold() if is_held else None
        for session in sessions:
            push = _push(engine, session.worker, session.epoch, sequence, dtype)
            staged = engine.stage(replace(push, kind=kind))
            if isinstance(staged, Staged):
                engine.commit(staged)
                _measure(engine, staged)
        if held is not None:
            engine.store.release(held)


def _measure(engine: Engine, staged: Staged) -> None:
    """Compile what the history asks of a step."""
    if staged.gradient is not None:
        gradient_norm(staged.gradient)
    ParametersBefore(engine.store.current).update_norm(engine.store.current)


def _miniature(definition: Definition) -> Definition:
    """Return a definition with the same rules and two elements of everything."""
    state = set(definition.state)
    dtypes = {tensor.dtype: None for tensor in definition.layout if tensor.name not in state}
    parts = (*_PARTS, *map(str, range(len(definition.groups))))
    values = [
        Tensor(f"{tensor.dtype}/value", (2,), tensor.dtype)
        for tensor in definition.layout
        if tensor.name in state
    ]
    optimized = [Tensor(f"{dtype}/{part}", (2,), dtype) for dtype in dtypes for part in parts]
    layout = Layout([*optimized, *dict.fromkeys(values)])
    groups = tuple(
        replace(group, tensors=tuple(f"{dtype}/{position}" for dtype in dtypes))
        for position, group in enumerate(definition.groups)
    )
    excluded = tuple(name for name in layout.names if name.endswith("excluded"))
    return replace(
        definition,
        name="rehearsal",
        layout=layout,
        excluded=excluded,
        consistency=definition.consistency.miniature(len(_WORKERS)),
        groups=groups,
        state=tuple(name for name in layout.names if name.endswith("value")),
    )


def _push(engine: Engine, worker: str, epoch: int, sequence: int, dtype: str) -> Push:
    layout = engine.layout
    selection = layout.select(name for name in layout.names if not name.endswith("missing"))
    payload = selection.new_payload(dtype)
    for array in payload.values():
        array.fill(0)
    return Push(
        worker=worker,
        epoch=epoch,
        sequence=sequence,
        incarnation=engine.incarnation,
        gradient=Gradient(selection, payload, dtype),
        version=engine.counters.parameters_version,
        hyperparameters=dict.fromkeys(engine.definition.declared_per_push, 0.5),
        state=engine.definition.state,
    )
