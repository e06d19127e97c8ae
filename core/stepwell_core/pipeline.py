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

1 to 6 are one loop over memory (`kernels.py`). This module decides which loop runs over which
tensors, and computes the few numbers that are the same for all elements: `StepScalars`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from stepwell_core import kernels
from stepwell_core.kernels import Stages
from stepwell_core.layout import Arenas, Array, Layout, Segment, Tensor
from stepwell_core.optimizers import Optimizer
from stepwell_core.schedules import LearningRateSchedule

AVERAGE = "average"
ACCUMULATOR = "gradient_accumulator"


@dataclass(frozen=True)
class Gradient:
    """A gradient as it travels.

    Attributes:
        layout: The tensors it has: the model's layout or a selection of it.
        arenas: The elements, in `layout`'s order; read, never written.
        dtype: What they are, one of `PAYLOAD_DTYPES`.
        loss_scale: What they have still to be divided by, if anything.
    """

    layout: Layout
    arenas: Arenas
    dtype: str = "native"
    loss_scale: float | None = None

    def bits(self, arena_dtype: str) -> tuple[Array, str]:
        """Return one arena as the kernels take it, and the name of its elements' format."""
        array = self.arenas[arena_dtype]
        payload = arena_dtype if self.dtype == "native" else self.dtype
        return (array.view(np.uint16) if array.itemsize == 2 else array), payload

    def is_finite(self) -> bool:
        """Return whether no element is NaN or infinite; O(elements), reads each once."""
        kernel = kernels.finite_kernel()
        for dtype in self.arenas:
            array, payload = self.bits(dtype)
            unsigned = array.view(f"u{array.itemsize}")
            if not kernel(unsigned, _EXPONENT_MASK[payload]):
                return False
        return True


_EXPONENT_MASK = {
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
    "float32": np.uint32(0x7F800000),
    "float64": np.uint64(0x7FF0000000000000),
}


@dataclass(frozen=True)
class StepScalars:
    """What is the same for all elements of one step; a journal keeps it, since pow differs between
    CPUs.

    Attributes:
        learning_rate: Of this step.
        updates: False while gradients are only accumulated.
        overwrites: Whether the average overwrites the parameters afterwards.
        constants: For the stages, by arena dtype; see the positions in `kernels.py`.
        rule: For the rule, by arena dtype; see `Optimizer.scalars`.
    """

    learning_rate: float
    updates: bool
    overwrites: bool
    constants: dict[str, Array]
    rule: dict[str, tuple[Any, ...]]

    @property
    def changes_parameters(self) -> bool:
        """Whether the parameters' bytes change, and so whether the step needs a buffer to write
        to.
        """
        return self.updates or self.overwrites


@dataclass(frozen=True)
class Group:
    """Tensors of one arena that take the same stages.

    Attributes:
        decays: Whether they decay.
        runs: int64 [n, 3]: start and stop in the arena, start in the gradient.
        clips: [n, 2] of the arena's dtype: all ones, for steps without a norm.
    """

    decays: bool
    runs: Array
    clips: Array


@dataclass(frozen=True)
class Plan:
    """Which runs of the arenas a gradient of one selection touches.

    Attributes:
        groups: By arena dtype.
        missing: By arena dtype, the segments without a gradient.
    """

    groups: dict[str, list[Group]]
    missing: dict[str, list[Segment]]


class Pipeline:
    """The steps of one model: its layout and optimizer, bound to the kernels they need.

    Holds no arrays of the model; not thread-safe by itself: the caller is the model's only writer.

    Args:
        layout: The model's tensors.
        optimizer: Rule and options.
        excluded: Names of tensors without weight decay.
        compiled: False runs the same loops as plain Python, for tests.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: Optimizer,
        excluded: Iterable[str] = (),
        *,
        compiled: bool = True,
    ) -> None:
        self.layout = layout
        self.optimizer = optimizer
        self.excluded = frozenset(excluded)
        self._compiled = compiled
        self._plan = lru_cache(maxsize=64)(self._make_plan)
        self._rule_slots = tuple(optimizer.slots)

    @property
    def slot_values(self) -> dict[str, float]:
        """All slots with their initial values: the rule's, then `average` and
        `gradient_accumulator`.
        """
        slots = dict(self.optimizer.slots)
        if self.optimizer.use_ema:
            slots[AVERAGE] = 0.0
        if self.optimizer.gradient_accumulation_steps:
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
    ) -> StepScalars:
        """Return the scalars of the next step.

        Args:
            iterations: Keras's raw counter: calls so far, accumulating ones included.
            loss_scale: What the gradient is divided by, if anything.
            values: Hyperparameters that came with the push.

        Raises:
            InvalidArgument: A value breaks its hyperparameter's rule.
        """
        optimizer = self.optimizer
        if values:
            optimizer = optimizer.with_values(values)
        k = optimizer.gradient_accumulation_steps or 1
        steps = iterations // k
        frequency = optimizer.ema_overwrite_frequency if optimizer.use_ema else None
        learning_rate = self._learning_rate(optimizer, iterations, came_with_push=bool(values))
        constants, rule = {}, {}
        with np.errstate(all="ignore"):
            for dtype in self.layout.sizes:
                lr = np.dtype(dtype).type(learning_rate)
                constants[dtype] = _constants(optimizer, lr, steps, k, loss_scale)
                rule[dtype] = optimizer.scalars(lr, steps)
        return StepScalars(
            learning_rate=float(learning_rate),
            updates=(iterations + 1) % k == 0,
            overwrites=bool(frequency) and (steps + 1) % (frequency or 1) == 0,
            constants=constants,
            rule=rule,
        )

    def _learning_rate(self, optimizer: Optimizer, iterations: int, *, came_with_push: bool) -> Any:
        value = optimizer.learning_rate
        if isinstance(value, LearningRateSchedule):
            return value(iterations)
        if came_with_push and callable(self.optimizer.learning_rate):
            return value  # Keras casts what a callable returns straight to the parameter's dtype
        return optimizer.learning_rate_value

    def apply(
        self,
        source: Arenas,
        target: Arenas,
        slots: Mapping[str, Arenas],
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
        if scalars.overwrites:
            for dtype, average in slots[AVERAGE].items():
                target[dtype][...] = average

    def _update(
        self,
        source: Arenas,
        target: Arenas,
        slots: Mapping[str, Arenas],
        gradient: Gradient,
        scalars: StepScalars,
        plan: Plan,
    ) -> None:
        scales = (
            self._clip_scales(slots, gradient, scalars, plan)
            if self.optimizer.clips_by_norm
            else {}
        )
        for dtype, groups in plan.groups.items():
            w, out = source[dtype], target[dtype]
            self._leave_out(plan.missing[dtype], dtype, source, target, slots, scalars)
            if not groups:
                continue
            g, payload = gradient.bits(dtype)
            nothing = w[:0]
            accumulator = slots[ACCUMULATOR][dtype] if ACCUMULATOR in slots else nothing
            average = slots[AVERAGE][dtype] if AVERAGE in slots else nothing
            rule_slots = tuple(slots[name][dtype] for name in self._rule_slots)
            for position, group in enumerate(groups):
                kernel = self._step_kernel(
                    payload, gradient.loss_scale is not None, group.decays, w is out
                )
                kernel(
                    w, out, g, rule_slots, accumulator, average, group.runs,
                    scales.get((dtype, position), group.clips),
                    scalars.constants[dtype], scalars.rule[dtype],
                )  # fmt: skip

    def _step_kernel(
        self, payload: str, unscales: bool, decays: bool, in_place: bool
    ) -> kernels.Kernel:
        optimizer = self.optimizer
        stages = Stages(
            payload=payload,
            unscales=unscales,
            accumulates=bool(optimizer.gradient_accumulation_steps),
            clips="norm"
            if optimizer.clips_by_norm
            else "value"
            if optimizer.clips_by_value
            else "none",
            decays=decays,
            averages=optimizer.use_ema,
        )
        return kernels.step_kernel(
            optimizer.update,
            len(self._rule_slots),
            stages,
            in_place=in_place,
            compiled=self._compiled,
        )

    def _leave_out(
        self,
        missing: Sequence[Segment],
        dtype: str,
        source: Arenas,
        target: Arenas,
        slots: Mapping[str, Arenas],
        scalars: StepScalars,
    ) -> None:
        """Carry over tensors without a gradient; as in Keras, they take part in the average
        alone.
        """
        for segment in missing:
            place = slice(segment.start, segment.stop)
            if source[dtype] is not target[dtype]:
                target[dtype][place] = source[dtype][place]
            if ACCUMULATOR in slots:
                slots[ACCUMULATOR][dtype][place] = 0
            if AVERAGE in slots:
                kernel = kernels.average_kernel(compiled=self._compiled)
                kernel(source[dtype][place], slots[AVERAGE][dtype][place], scalars.constants[dtype])

    def _accumulate(
        self,
        source: Arenas,
        slots: Mapping[str, Arenas],
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

    def _clip_scales(
        self, slots: Mapping[str, Arenas], gradient: Gradient, scalars: StepScalars, plan: Plan
    ) -> dict[tuple[str, int], Array]:
        """Return numerator and denominator of each run, by arena dtype and group."""
        squares: dict[tuple[str, int], Array] = {}
        for dtype in gradient.layout.sizes:
            g, payload = gradient.bits(dtype)
            accumulates = bool(self.optimizer.gradient_accumulation_steps)
            stages = Stages(
                payload=payload, unscales=gradient.loss_scale is not None, accumulates=accumulates
            )
            kernel = kernels.squares_kernel(stages, compiled=self._compiled)
            accumulator = slots[ACCUMULATOR][dtype] if accumulates else np.empty(0, dtype)
            for position, group in enumerate(plan.groups[dtype]):
                sums = np.empty(len(group.runs), np.float64)
                kernel(g, accumulator, group.runs, scalars.constants[dtype], sums)
                squares[dtype, position] = sums
        with np.errstate(all="ignore"):
            if self.optimizer.clipnorm:
                return {
                    key: _clip_each(key[0], sums, self.optimizer.clipnorm)
                    for key, sums in squares.items()
                }
            total = _exact_sum(float(value) for sums in squares.values() for value in sums)
            clip = float(self.optimizer.global_clipnorm or 0)
            return {key: _clip_all(key[0], len(sums), total, clip) for key, sums in squares.items()}

    def aggregate(self, gradients: Sequence[Gradient], weights: Sequence[float]) -> Gradient:
        """Return the weighted mean of gradients, tensor by tensor over those who sent it.

        Summed in the parameter's dtype in the given order, so the bytes depend on it and on nothing
        else. A gradient's loss scale is taken out; the result has none.
        """
        names = {name for gradient in gradients for name in gradient.layout.names}
        layout = self.layout.select(name for name in self.layout.names if name in names)
        total = layout.new_arenas(None)
        weight_sums = dict.fromkeys(layout.names, 0.0)
        for gradient, weight in zip(gradients, weights, strict=True):
            self._add(total, layout, weight_sums, gradient, weight)
        for name, weight_sum in weight_sums.items():
            if weight_sum != 1.0:
                segment = layout.segments[name]
                part = total[segment.tensor.dtype][segment.start : segment.stop]
                np.divide(part, part.dtype.type(weight_sum), out=part)
        return Gradient(layout, total)

    def _add(
        self,
        total: Arenas,
        layout: Layout,
        weight_sums: dict[str, float],
        gradient: Gradient,
        weight: float,
    ) -> None:
        for dtype in gradient.layout.sizes:
            g, payload = gradient.bits(dtype)
            constants = np.ones(kernels.CONSTANTS, dtype)
            constants[kernels.LOSS_SCALE] = gradient.loss_scale or 1.0
            stages = Stages(payload=payload, unscales=gradient.loss_scale is not None)
            for is_first in (True, False):
                segments = [
                    (layout.segments[name], gradient.layout.segments[name])
                    for name, segment in gradient.layout.segments.items()
                    if segment.tensor.dtype == dtype and (weight_sums[name] == 0.0) is is_first
                ]
                kernel = kernels.aggregate_kernel(
                    stages, is_first=is_first, compiled=self._compiled
                )
                kernel(g, total[dtype], _runs(segments), constants, np.dtype(dtype).type(weight))
        for name in gradient.layout.names:
            weight_sums[name] += weight

    def warm(self, dtype: str = "native") -> None:
        """Compile what pushes need whose elements are `dtype`, or load it from the cache.

        Makes steps with every such kernel on a model of a few elements; takes seconds the first
        time.
        """
        optimizer = self.optimizer
        layout = Layout(
            Tensor(f"{arena_dtype}/{part}", (2,), arena_dtype)
            for arena_dtype in self.layout.sizes
            for part in ("decaying", "excluded", "missing")
        )
        excluded = [name for name in layout.names if name.endswith("excluded")]
        tiny = Pipeline(layout, optimizer, excluded, compiled=self._compiled)
        present = layout.select(name for name in layout.names if not name.endswith("missing"))
        payload = present.new_payload(dtype)
        for array in payload.values():
            array.fill(0)
        loss_scale = optimizer.loss_scale_factor
        gradient = Gradient(present, payload, dtype, loss_scale)
        gradient.is_finite()
        slots, source, target = tiny.new_slots(), layout.new_arenas(), layout.new_arenas()
        values = dict.fromkeys(optimizer.declared_per_push, 0.5)
        for iterations in range(optimizer.gradient_accumulation_steps or 1):
            scalars = tiny.scalars(iterations, loss_scale, values)
            tiny.apply(source, source, slots, gradient, scalars)
        tiny.apply(source, target, slots, gradient, scalars)

    def _make_plan(self, selection: Layout) -> Plan:
        groups: dict[str, list[Group]] = {dtype: [] for dtype in self.layout.sizes}
        missing: dict[str, list[Segment]] = {dtype: [] for dtype in self.layout.sizes}
        pairs: dict[tuple[str, bool], list[tuple[Segment, Segment]]] = {}
        for name, segment in self.layout.segments.items():
            if name not in selection.segments:
                missing[segment.tensor.dtype].append(segment)
                continue
            decays = self.optimizer.weight_decay is not None and name not in self.excluded
            pairs.setdefault((segment.tensor.dtype, decays), []).append(
                (segment, selection.segments[name])
            )
        for (dtype, decays), segments in pairs.items():
            runs = _runs(segments, joins=not self.optimizer.clips_by_norm)
            groups[dtype].append(Group(decays, runs, np.ones((len(runs), 2), dtype)))
        return Plan(groups, missing)


def _constants(
    optimizer: Optimizer, learning_rate: Any, steps: int, k: int, loss_scale: float | None
) -> Array:
    dtype = type(learning_rate)
    constants = np.ones(kernels.CONSTANTS, dtype)
    constants[kernels.LOSS_SCALE] = 1.0 if loss_scale is None else loss_scale
    constants[kernels.ACCUMULATION_STEPS] = k
    constants[kernels.CLIP_VALUE] = optimizer.clipvalue or 0.0
    constants[kernels.WEIGHT_DECAY] = optimizer.weight_decay or 0.0
    constants[kernels.LEARNING_RATE] = learning_rate
    momentum = dtype(steps != 0) * dtype(optimizer.ema_momentum)
    constants[kernels.MOMENTUM] = momentum
    constants[kernels.ONE_MINUS_MOMENTUM] = dtype(1) - momentum
    return constants


def _clip_each(dtype: str, squares: Array, clipnorm: float) -> Array:
    """`g * clipnorm / max(norm, clipnorm)`, a norm for each tensor."""
    clips = np.empty((len(squares), 2), dtype)
    clips[:, 0] = clipnorm
    clips[:, 1] = np.maximum(np.sqrt(squares).astype(dtype), np.dtype(dtype).type(clipnorm))
    return clips


def _clip_all(dtype: str, count: int, total: float, clip: float) -> Array:
    """`g * scale`, one norm for all tensors; a norm that is not finite makes the scale NaN."""
    norm = np.sqrt(np.float64(total)).astype(dtype)
    one = norm.dtype.type(1)
    scale = norm.dtype.type(clip) * np.minimum(one / norm, norm.dtype.type(1.0 / clip)) + (
        norm - norm
    )
    clips = np.ones((count, 2), dtype)
    clips[:, 0] = scale
    return clips


def _exact_sum(values: Iterable[float]) -> float:
    """Return the correctly rounded sum, which does not depend on the order."""
    try:
        return math.fsum(values)
    except OverflowError:  # what fsum raises where a sum of floats would be infinite
        return math.inf


def _runs(segments: Sequence[tuple[Segment, Segment]], *, joins: bool = True) -> Array:
    """Return [start, stop, start in the gradient] of each tensor, neighbours joined where both
    sides allow.
    """
    runs: list[list[int]] = []
    for there, here in segments:
        length = runs[-1][1] - runs[-1][0] if runs else 0
        if joins and runs and runs[-1][1] == there.start and runs[-1][2] + length == here.start:
            runs[-1][1] = there.stop
        else:
            runs.append([there.start, there.stop, here.start])
    return np.array(runs, np.int64).reshape(-1, 3)
