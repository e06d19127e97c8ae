"""After a rehearsal no push of the model has to wait for the compiler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from stepwell_core.consistency import Async, Buffered, Consistency, Sync
from stepwell_core.definition import Definition
from stepwell_core.engine import Engine
from stepwell_core.groups import ParameterGroup
from stepwell_core.keras_config import AnyOptimizer
from stepwell_core.layout import Layout, Tensor
from stepwell_core.loss_scale import LossScaleOptimizer
from stepwell_core.optimizers import SGD, Adam, PerPush, TorchSGD
from stepwell_core.pipeline import Gradient
from stepwell_core.push import Push, Staged
from stepwell_core.rehearsal import rehearse
from stepwell_core.wire import Kind

LAYOUT = Layout([Tensor(name, (3,), "float32") for name in "abc"])
OPTIMIZERS = {
    "everything": SGD(
        PerPush(), weight_decay=0.1, clipnorm=1.0, use_ema=True, gradient_accumulation_steps=2
    ),
    "fixed scale": Adam(loss_scale_factor=2.0, clipvalue=1.0),
    "dynamic scale": LossScaleOptimizer(Adam(amsgrad=True)),
}


@pytest.mark.parametrize("dtype", ["native", "float16"])
@pytest.mark.parametrize("consistency", [Async(), Sync(3), Sync(3, reduction="arrival")], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_after_a_rehearsal_no_push_compiles(
    optimizer: AnyOptimizer, consistency: Consistency, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place and not, decaying and not, with tensors missing, alone and in an aggregate."""
    # Arrange
    definition = Definition("m", LAYOUT, optimizer, ("b",), consistency)
    rehearse(definition, dtype)
    engine = Engine.create(definition, LAYOUT.new_arenas(1.0), "now")
    compiled = compiled_from_now_on(monkeypatch)

    # Act
    push_from_three(engine, dtype)

    # Assert
    assert compiled == []
    assert engine.counters.version > 0
    assert not (engine.store.current["float32"][:6] == 1).any()


def test_after_a_rehearsal_no_delta_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read with a loss scale of -1, where a gradient has none."""
    definition = Definition("m", LAYOUT, SGD(0.5))
    rehearse(definition, kind="delta")
    engine = Engine.create(definition, LAYOUT.new_arenas(1.0), "now")
    compiled = compiled_from_now_on(monkeypatch)

    push_from_three(engine, "native", "delta")

    assert compiled == []
    assert (engine.store.current["float32"][:6] == 9.0).all()  # 16 deltas of 1, half of each


@pytest.mark.parametrize("consistency", [Async(), Sync(3), Buffered(3)], ids=str)
def test_after_a_rehearsal_no_push_of_groups_and_state_compiles(
    consistency: Consistency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a group alone decays, and a tensor is set and not optimized."""
    own = {"weight_decay": PerPush(), "learning_rate": PerPush()}
    groups = (ParameterGroup("g", ("a",), hyperparameters=own),)
    layout = Layout([*LAYOUT, Tensor("mean", (2,), "float64")])
    definition = Definition(
        "m", layout, TorchSGD(0.5), consistency=consistency, groups=groups, state=("mean",)
    )
    rehearse(definition)
    engine = Engine.create(definition, layout.new_arenas(1.0), "now")
    compiled = compiled_from_now_on(monkeypatch)

    push_from_three(engine, "native")

    assert compiled == []
    assert engine.counters.version > 0
    assert engine.store.current["float64"].tolist() == [0.0, 0.0]


def compiled_from_now_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each kernel that is compiled, or loaded from the cache."""
    compiled: list[str] = []
    compile_kernel = Dispatcher.compile

    def compile_and_tell(self: Any, signature: Any) -> Any:
        compiled.append(f"{self.__qualname__} {signature}")
        return compile_kernel(self, signature)

    monkeypatch.setattr(Dispatcher, "compile", compile_and_tell)
    return compiled


def push_from_three(engine: Engine, dtype: str, kind: Kind = "gradient") -> None:
    """Make eight rounds of pushes, the last four of one worker alone; every other two are read."""
    epochs = {worker: engine.open_session(worker)[0].epoch for worker in ("x", "y", "z")}
    state = engine.definition.state
    selection = engine.layout.select(["a", "b", *state])
    payload = selection.new_payload(dtype)
    for arena_dtype, array in payload.items():
        array[...] = 1 if arena_dtype == "float32" else 0
    values = dict.fromkeys(engine.definition.declared_per_push, 0.5)
    for sequence in range(8):
        if sequence == 4:
            for worker in ("y", "z"):
                engine.close_session(worker, epochs.pop(worker))
        held = engine.store.hold() if sequence % 4 >= 2 else None
        for worker, epoch in epochs.items():
            gradient = Gradient(selection, payload, dtype)
            push = Push(
                worker, epoch, sequence, "now", gradient,
                hyperparameters=values, kind=kind, state=state,
            )  # fmt: skip
            staged = engine.stage(push)
            if isinstance(staged, Staged):
                engine.commit(staged)
        if held is not None:
            engine.store.release(held)


def test_a_rehearsal_leaves_the_definition_alone() -> None:
    """It works on a miniature: the model's own tensors are not even allocated."""
    huge = Layout([Tensor("w", (1 << 42,), "float64")])
    definition = Definition("m", huge, SGD())

    rehearse(definition)

    assert definition.layout is huge
    assert np.dtype("float64").itemsize * huge.size == huge.nbytes
