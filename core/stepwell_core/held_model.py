"""What a model holds: its arrays, its bookkeeping and its rules; and changes that are no pushes.

`engine.py` adds sessions and pushes. Pure, and not thread-safe, as that says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np

from stepwell_core.buffer import BUFFER, Buffer
from stepwell_core.consistency import Consistency, Policy, Standing
from stepwell_core.definition import Definition
from stepwell_core.errors import InvalidInput, NothingToFinalize
from stepwell_core.hyperparameters import with_hyperparameters
from stepwell_core.layout import Arenas, Layout
from stepwell_core.ledger import Ledger
from stepwell_core.loss_scale import LossScale, LossScaleOptimizer
from stepwell_core.pipeline import AVERAGE, Pipeline
from stepwell_core.push import Push, Staged
from stepwell_core.reduction import Reduction, reduction_of
from stepwell_core.state import Counters, Snapshot, State, check_state, pipeline_of
from stepwell_core.store import Store
from stepwell_core.succession import replaced, restored

Room = tuple[Reduction, Arenas | None]
"""What a mode needs memory for: see `HeldModel.prepare_consistency`."""


class HeldModel:
    """One model: its arrays, bookkeeping and rules.

    Args:
        state: What it begins with.
        incarnation: Names the history of this model from now on; 128 random bits, in hexadecimal.

    Raises:
        CheckpointInvalid: The state is not whole: see `restore`.
    """

    def __init__(self, state: State, incarnation: str) -> None:
        self._adopt(state, incarnation)
        self.store = Store(
            self.definition.layout, state.parameters, state.counters.parameters_version, state.slots
        )

    @classmethod
    def create(cls, definition: Definition, parameters: Arenas, incarnation: str) -> Self:
        """Return the engine of a new model; it owns `parameters` from now on."""
        pipeline = pipeline_of(definition)
        optimizer = definition.optimizer
        scaled = optimizer if isinstance(optimizer, LossScaleOptimizer) else None
        counters = Counters(loss_scale=LossScale.initial(scaled) if scaled else None)
        slots = pipeline.new_slots()
        if definition.consistency.gathers:
            slots[BUFFER] = definition.layout.new_arenas()
        return cls(State(definition, counters, Ledger(), parameters, slots), incarnation)

    def _adopt(self, state: State, incarnation: str) -> None:
        definition = state.definition
        pipeline = pipeline_of(definition)
        check_state(state, pipeline)
        ledger = state.ledger.cut()
        reduction = reduction_of(definition, pipeline)
        buffer = None
        if BUFFER in state.slots:
            buffer = Buffer(pipeline, state.slots[BUFFER], state.gathered)
        self.definition = definition  # from here on nothing fails
        self.pipeline = pipeline
        self.incarnation = incarnation
        self.counters = state.counters
        self.ledger = ledger
        self._reduction = reduction
        self._buffer = buffer
        self._staged: list[Staged] = []
        self._forget_waiting()

    def _forget_waiting(self) -> None:
        """Begin with a policy that knows who is there, and for which nothing waits."""
        ledger, gathered = self.ledger, 0 if self._buffer is None else self._buffer.count
        standing = Standing(ledger.clocks, ledger.most_open, gathered)
        self.policy: Policy[Push] = self.definition.consistency.policy(standing)
        self._reduction.clear()

    @property
    def layout(self) -> Layout:
        """The model's tensors."""
        return self.definition.layout

    @property
    def loss_scale(self) -> float | None:
        """What workers are to multiply their loss by, with dynamic loss scaling."""
        scale = self.counters.loss_scale
        return None if scale is None else scale.scale

    @property
    def _ahead(self) -> Counters:
        """The counters after all that is staged."""
        return self._staged[-1].counters if self._staged else self.counters

    # Changes that are no pushes

    def check_finalize(self) -> None:
        """Refuse a `finalize` that would fail.

        Raises:
            NothingToFinalize: There was no step yet, so the average is still all zeros.
        """
        if self.definition.rule.use_ema and not self.counters.iterations:
            raise NothingToFinalize(
                "The moving average is all zeros before the first push; push first"
            )

    def finalize(self) -> Counters:
        """Write the moving average into the parameters, as `finalize_variable_values` does.

        Pushes that wait are forgotten if the parameters change: they come too late now, and are
        told so when they are staged again.

        Raises:
            NothingToFinalize: See `check_finalize`.
        """
        assert not self._staged, "what was staged is committed or withdrawn before"
        self.check_finalize()
        after = replace(self.counters, version=self.counters.version + 1)
        if self.definition.rule.use_ema:
            self._replace_parameters(self.store.slots[AVERAGE], after.version)
            after = replace(after, parameters_version=after.version)
            self._forget_waiting()
        self.counters = after
        return after

    def state(self) -> State:
        """Return the model as it is; its arrays are the engine's own, to be read only."""
        return State(
            self.definition,
            self.counters,
            self.ledger.cut(),
            self.store.current,
            self.store.slots,
            self.gathered(),
        )

    def adopt(self, state: State, incarnation: str) -> Counters:
        """Become another state, one of `succession.py`; a new incarnation.

        Sessions of the old incarnation are told so at their next push. Pushes that wait are
        forgotten.

        Args:
            state: Its parameters are copied, its slots the engine's from now on.
            incarnation: Of the new history.

        Raises:
            CheckpointInvalid: Its slots, arrays, loss scale or ledger are not what its definition
                asks for; nothing changed.
        """
        assert not self._staged, "what was staged is committed or withdrawn before"
        self._adopt(state, incarnation)
        self.store.slots = dict(state.slots)
        self._replace_parameters(state.parameters, state.counters.version)
        return self.counters

    def overwrite(self, parameters: Arenas, incarnation: str) -> Counters:
        """Replace the parameters and leave slots and sessions; see `succession.replaced`."""
        return self.adopt(replaced(self.state(), parameters), incarnation)

    def restore(self, state: State, incarnation: str) -> Counters:
        """Replace everything by what a checkpoint held; see `succession.restored`."""
        return self.adopt(restored(self.state(), state), incarnation)

    def _replace_parameters(self, parameters: Arenas, version: int) -> None:
        claim = self.store.claim()
        for dtype, array in parameters.items():
            claim.target[dtype][...] = array
        self.store.publish(version)

    def prepare_hyperparameters(self, values: Mapping[str, Any]) -> tuple[Definition, Pipeline]:
        """Return what `adopt_hyperparameters` takes; changes nothing.

        Raises:
            InvalidArgument: See `with_hyperparameters`.
        """
        return with_hyperparameters(self.definition, self.pipeline, values)

    def adopt_hyperparameters(self, definition: Definition, pipeline: Pipeline) -> None:
        """Use other hyperparameters from the next step on; adds no version."""
        self.definition = definition
        self.pipeline = pipeline

    def prepare_consistency(self, mode: Consistency) -> Room:
        """Return the memory that `adopt_consistency` takes; changes nothing.

        Raises:
            MemoryError: There is too little.
        """
        definition = self.definition.with_consistency(mode)
        needs_buffer = mode.gathers and self._buffer is None
        arenas = self.layout.new_arenas() if needs_buffer else None
        return reduction_of(definition, self.pipeline), arenas

    def adopt_consistency(self, mode: Consistency, room: Room | None = None) -> tuple[Push, ...]:
        """Let pushes become steps by another mode from now on; adds no version.

        All clocks begin anew. Nothing may be gathered: see `stage_gathered`.

        Args:
            mode: It.
            room: What `prepare_consistency` returned, the model's from now on. With it, this cannot
                fail.

        Returns:
            The pushes that waited, to be staged again; those that were added to a running sum are
            not among them, and have to come again.
        """
        assert not self._staged, "what was staged is committed or withdrawn before"
        reduction, arenas = room or self.prepare_consistency(mode)
        waited = () if self._reduction.adds_on_arrival else tuple(self.policy.waiting)
        self.definition = self.definition.with_consistency(mode)
        self._reduction = reduction
        if not mode.gathers:
            self.store.slots.pop(BUFFER, None)
            self._buffer = None
        elif arenas is not None:
            self.store.slots[BUFFER] = arenas
            self._buffer = Buffer(self.pipeline, arenas, {})
        self.ledger.restart_clocks()
        self._forget_waiting()
        return waited

    def gathered(self) -> dict[str, Any]:
        """Return what `Buffer.to_json` says; nothing without a buffer."""
        return {} if self._buffer is None else self._buffer.to_json()

    # Cuts

    def snapshot(self, buffers: dict[str, Arenas]) -> Snapshot:
        """Return a consistent cut; O(slots), at the speed of memory. No reader can prevent it.

        Args:
            buffers: Arenas for each slot, allocated and touched before; the snapshot owns them.
        """
        for name, arenas in self.store.slots.items():
            if name not in buffers:  # the mode was changed in between
                buffers[name] = self.layout.new_arenas(None)
            for dtype, array in arenas.items():
                np.copyto(buffers[name][dtype], array)
        version = self.store.hold(is_reserved=True)
        assert version is not None, "the writer itself takes the snapshot, so no step is under way"
        return Snapshot(
            definition=self.definition,
            incarnation=self.incarnation,
            counters=self.counters,
            ledger=self.ledger.cut(),
            parameters=version,
            slots={name: buffers[name] for name in self.store.slots},
            gathered=self.gathered(),
        )

    def slot(self, name: str) -> Arenas:
        """Return a copy of one slot.

        Raises:
            InvalidInput: The optimizer has no such slot.
        """
        if name not in self.store.slots:
            raise InvalidInput(
                f"The optimizer has the slots: {', '.join(self.store.slots) or 'none'}. Received: "
                f"{name[:80]!r}"
            )
        return {dtype: array.copy() for dtype, array in self.store.slots[name].items()}
