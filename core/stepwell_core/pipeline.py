"""One step, in Keras's order.

 1. divide the gradient by the loss scale
 2. accumulate, or take the mean on every k-th call
 3. clip
 4. decay the parameters
 5. the rule
 6. the moving average, on every call and for every tensor
 7. overwrite the parameters with the average, if it is time

Source: Keras 3.15, `base_optimizer.py`, as its NumPy backend runs it. Everything equals it to the
bit but the norms in 3, which are summed in float64 over blocks fixed by the layout.

1 to 6 are one loop over memory (`kernels`). `plan.py` says which tensors it runs over, `scalars.py`
computes the few numbers that are the same for all elements, `clipping.py` those of each norm; this
module has the order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from inspect import signature

from stepwell_core import kernels
from stepwell_core.aggregation import RunningSum
from stepwell_core.clipping import Key, clip_scales, squared_norms
from stepwell_core.gradient import Gradient
from stepwell_core.groups import ParameterGroup
from stepwell_core.kernels import Kernel, Stages
from stepwell_core.layout import Arenas, Array, Layout, Segment
from stepwell_core.optimizers import Optimizer
from stepwell_core.plan import Plan, make_plan
from stepwell_core.scalars import GroupScalars, StepScalars, step_scalars

__all__ = ["ACCUMULATOR", "AVERAGE", "Gradient", "Pipeline", "StepScalars"]

AVERAGE = "average"
ACCUMULATOR = "gradient_accumulator"

Slots = Mapping[str, Arenas]


class Pipeline:
    """The steps of one model: its layout and optimizer, bound to the kernels they need.

    Holds no arrays of the model; not thread-safe by itself: the caller is the model's only writer.

    Args:
        layout: The model's tensors.
        optimizer: Rule and options.
        excluded: Names of tensors without weight decay.
        groups: Tensors that take other numbers.
        state: Names of tensors that are not optimized, but take values as they are.
        compiled: False runs the same loops as plain Python, for tests.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: Optimizer,
        excluded: Iterable[str] = (),
        groups: Sequence[ParameterGroup] = (),
        state: Iterable[str] = (),
        *,
        compiled: bool = True,
    ) -> None:
        self.layout = layout
        self.optimizer = optimizer
        self.excluded = frozenset(excluded)
        self.groups = tuple(groups)
        self.state = frozenset(state)
        self._compiled = compiled
        self._rule_slots = tuple(optimizer.slots)
        self._accumulates = bool(optimizer.gradient_accumulation_steps)
        self._plan = lru_cache(maxsize=64)(
            lambda selection: make_plan(
                layout, selection, optimizer, self.excluded, self.groups, self.state
            )
        )

    @property
    def slot_values(self) -> dict[str, float]:
        """Initial values: the rule's slots, then `average` and `gradient_accumulator`."""
        slots = dict(self.optimizer.slots)
        if self.optimizer.use_ema:
            slots[AVERAGE] = 0.0
        if self._accumulates:
            slots[ACCUMULATOR] = 0.0
        return slots

    def new_slots(self) -> dict[str, Arenas]:
        """Return new slots with their initial values."""
        return {name: self.layout.new_arenas(value) for name, value in self.slot_values.items()}

    def scalars(
        self,
        iterations: int,
        loss_scale: float | None = None,
        values: Mapping[str, float] | None = None,
        scale: float = 1.0,
        *,
        assigns: bool = False,
    ) -> StepScalars:
        """Return the scalars of the next step; see `step_scalars`.

        Args:
            iterations: Keras's raw counter.
            loss_scale: What the gradient is divided by, if anything.
            values: Hyperparameters that came with the push.
            scale: What the learning rates are multiplied by.
            assigns: Whether the gradient has values of state; see `assigns`.

        Raises:
            InvalidArgument: A value breaks its hyperparameter's rule.
        """
        scalars = step_scalars(
            self.optimizer, self.layout.sizes, iterations, loss_scale, values, scale, self.groups
        )
        return replace(scalars, assigns=True) if assigns else scalars

    def assigns(self, selection: Layout) -> bool:
        """Return whether a gradient of these tensors has values of state."""
        return bool(self.state) and not self.state.isdisjoint(selection.segments)

    def takes(self, scalars: StepScalars) -> bool:
        """Return whether scalars are those of a step of this pipeline: a kernel asks no more."""
        optimizer = self.optimizer
        sets: tuple[StepScalars | GroupScalars, ...] = (scalars, *scalars.groups)
        count = len(signature(optimizer.update).parameters) - 2 - len(self._rule_slots)
        return (
            all(
                {dtype: len(held) for dtype, held in values.items()}
                == dict.fromkeys(self.layout.sizes, wanted)
                for own in sets
                for values, wanted in ((own.constants, kernels.CONSTANTS), (own.rule, count))
            )
            and len(scalars.groups) == len(self.groups)
            and (bool(self.state) or not scalars.assigns)
            and (scalars.updates or self._accumulates)
            and (optimizer.use_ema or not scalars.overwrites)
        )

    def new_sum(
        self,
        total: Arenas | None = None,
        weights: Mapping[str, float] | None = None,
        values: Collection[str] = (),
    ) -> RunningSum:
        """Return a sum of gradients; see `RunningSum`."""
        return RunningSum(
            self.layout, total, weights, state=self.state, values=values, compiled=self._compiled
        )

    def apply(
        self,
        source: Arenas,
        target: Arenas,
        slots: Slots,
        gradient: Gradient,
        scalars: StepScalars,
    ) -> None:
        """Make one step.

        Args:
            source: The parameters before.
            target: The parameters after: `source` itself (in place) or other arenas, all
                overwritten. Not touched if `scalars.changes_parameters` is False.
            slots: Read and written.
            gradient: Read only.
            scalars: Of this step.
        """
        plan = self._plan(gradient.layout)
        if scalars.updates:
            self._update(source, target, slots, gradient, scalars, plan)
        else:
            self._accumulate(source, slots, gradient, scalars, plan)
            if scalars.assigns:
                for dtype in (d for d in source if source[d] is not target[d]):
                    target[dtype][...] = source[dtype]
        for dtype in source if scalars.assigns else ():
            self._assign(dtype, target, slots, gradient, plan)
        if scalars.overwrites:
            for dtype, average in slots[AVERAGE].items():
                target[dtype][...] = average

    def _update(
        self,
        source: Arenas,
        target: Arenas,
        slots: Slots,
        gradient: Gradient,
        scalars: StepScalars,
        plan: Plan,
    ) -> None:
        scales = self._clip_scales(slots, gradient, scalars, plan)
        for dtype, groups in plan.groups.items():
            for segment in plan.missing[dtype]:
                self._leave_out(segment, source, target, slots, scalars)
            if not groups:
                continue
            w, out = source[dtype], target[dtype]
            g, payload = gradient.bits(dtype)
            nothing = w[:0]
            accumulator = slots[ACCUMULATOR][dtype] if ACCUMULATOR in slots else nothing
            average = slots[AVERAGE][dtype] if AVERAGE in slots else nothing
            rule_slots = tuple(slots[name][dtype] for name in self._rule_slots)
            for position, group in enumerate(groups):
                stages = self._stages(payload, gradient, decays=group.decays)
                kernel = self._step_kernel(stages, in_place=w is out)
                clips = scales.get((dtype, position), group.clips)
                numbers = scalars.of(group.own)
                kernel(
                    w, out, g, rule_slots, accumulator, average, group.runs, clips,
                    numbers.constants[dtype], numbers.rule[dtype],
                )  # fmt: skip

    def _stages(self, payload: str, gradient: Gradient, *, decays: bool) -> Stages:
        optimizer, clips = self.optimizer, "none"
        if optimizer.clips_by_norm:
            clips = "norm"
        elif optimizer.clips_by_value:
            clips = "value"
        return Stages(
            payload=payload,
            unscales=gradient.loss_scale is not None,
            accumulates=self._accumulates,
            clips=clips,
            decays=decays and not optimizer.couples_weight_decay,
            couples=decays and optimizer.couples_weight_decay,
            averages=optimizer.use_ema,
        )

    def _step_kernel(self, stages: Stages, *, in_place: bool) -> Kernel:
        rule, count = self.optimizer.update, len(self._rule_slots)
        return kernels.step_kernel(rule, count, stages, in_place=in_place, compiled=self._compiled)

    def _leave_out(
        self,
        segment: Segment,
        source: Arenas,
        target: Arenas,
        slots: Slots,
        scalars: StepScalars,
    ) -> None:
        """Carry over a tensor without a gradient.

        As in Keras it takes part in the average, and its accumulator is emptied with the others.
        """
        dtype, place = segment.tensor.dtype, slice(segment.start, segment.stop)
        w = source[dtype][place]
        if source[dtype] is not target[dtype]:
            target[dtype][place] = w
        if ACCUMULATOR in slots:
            slots[ACCUMULATOR][dtype][place] = 0
        if AVERAGE in slots and segment.tensor.name in self.state:
            slots[AVERAGE][dtype][place] = w
        elif AVERAGE in slots:
            kernel = kernels.average_kernel(compiled=self._compiled)
            kernel(w, slots[AVERAGE][dtype][place], scalars.constants[dtype])

    def _assign(
        self, dtype: str, target: Arenas, slots: Slots, gradient: Gradient, plan: Plan
    ) -> None:
        """Take over values of state; its average is the value itself."""
        for there, here in plan.values[dtype]:
            place = slice(there.start, there.stop)
            target[dtype][place] = gradient.values(here)
            if AVERAGE in slots:
                slots[AVERAGE][dtype][place] = target[dtype][place]

    def _accumulate(
        self,
        source: Arenas,
        slots: Slots,
        gradient: Gradient,
        scalars: StepScalars,
        plan: Plan,
    ) -> None:
        for dtype in gradient.layout.sizes:
            g, payload = gradient.bits(dtype)
            stages = Stages(payload=payload, unscales=gradient.loss_scale is not None)
            kernel = kernels.accumulate_kernel(stages, compiled=self._compiled)
            for group in plan.groups[dtype]:
                kernel(g, slots[ACCUMULATOR][dtype], group.runs, scalars.constants[dtype])
        if AVERAGE in slots:
            kernel = kernels.average_kernel(compiled=self._compiled)
            for dtype, average in slots[AVERAGE].items():
                kernel(source[dtype], average, scalars.constants[dtype])
            for segment in (self.layout.segments[name] for name in self.state):
                segment.view(slots[AVERAGE])[...] = segment.view(source)

    def _clip_scales(
        self, slots: Slots, gradient: Gradient, scalars: StepScalars, plan: Plan
    ) -> dict[Key, Array]:
        """Return what each run is multiplied and divided by; nothing without a norm."""
        if not self.optimizer.clips_by_norm:
            return {}
        squares = squared_norms(
            gradient, slots.get(ACCUMULATOR), plan, scalars.constants, compiled=self._compiled
        )
        return clip_scales(self.optimizer, squares)
