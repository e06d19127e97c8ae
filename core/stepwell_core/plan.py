"""Which parts of the arenas a step touches, and how: tensors that take the same stages, in runs.

Neighbours of one treatment are joined into one run, so a model of a thousand small tensors takes
one loop and not a thousand. Where each tensor has a norm of its own they stay apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from stepwell_core.groups import ParameterGroup
from stepwell_core.layout import Array, Layout, Segment
from stepwell_core.optimizers import Optimizer


@dataclass(frozen=True)
class Group:
    """Tensors of one arena that take the same stages.

    Attributes:
        decays: Whether they decay.
        own: The position of the group whose numbers they take; None: the optimizer's.
        runs: int64 [n, 3]: start and stop in the arena, start in the gradient.
        clips: [n, 2] of the arena's dtype: all ones, for steps without a norm.
    """

    decays: bool
    own: int | None
    runs: Array
    clips: Array


@dataclass(frozen=True)
class Plan:
    """Which runs of the arenas a gradient of one selection touches.

    Attributes:
        groups: By arena dtype.
        missing: By arena dtype, the segments without a gradient.
        values: By arena dtype, the places of state in the model's arena and in the gradient's.
    """

    groups: dict[str, list[Group]]
    missing: dict[str, list[Segment]]
    values: dict[str, list[tuple[Segment, Segment]]]


def make_plan(
    layout: Layout,
    selection: Layout,
    optimizer: Optimizer,
    excluded: Collection[str],
    own: Sequence[ParameterGroup] = (),
    state: Collection[str] = (),
) -> Plan:
    """Return the plan of one selection; O(tensors).

    Args:
        layout: The model's tensors.
        selection: Those that have a gradient.
        optimizer: Says whether there is decay, and whether there are norms.
        excluded: Names of tensors without weight decay.
        own: The groups of tensors that take other numbers.
        state: Names of tensors that are not optimized, but take values as they are.
    """
    owners = {name: position for position, group in enumerate(own) for name in group.tensors}
    decaying = {None: optimizer.weight_decay is not None} | {
        position: group.rule(optimizer).weight_decay is not None
        for position, group in enumerate(own)
    }
    missing: dict[str, list[Segment]] = {dtype: [] for dtype in layout.sizes}
    values: dict[str, list[tuple[Segment, Segment]]] = {dtype: [] for dtype in layout.sizes}
    pairs: dict[tuple[str, bool, int | None], list[tuple[Segment, Segment]]] = {}
    for name, there in layout.segments.items():
        dtype, here = there.tensor.dtype, selection.segments.get(name)
        if here is None:
            missing[dtype].append(there)
            continue
        if name in state:
            values[dtype].append((there, here))
            continue
        owner = owners.get(name)
        decays = decaying[owner] and name not in excluded
        pairs.setdefault((dtype, decays, owner), []).append((there, here))
    groups: dict[str, list[Group]] = {dtype: [] for dtype in layout.sizes}
    for (dtype, decays, owner), segments in pairs.items():
        runs = make_runs(segments, joins=not optimizer.clips_by_norm)
        groups[dtype].append(Group(decays, owner, runs, np.ones((len(runs), 2), dtype)))
    return Plan(groups, missing, values)


def make_runs(segments: Sequence[tuple[Segment, Segment]], *, joins: bool = True) -> Array:
    """Return [start, stop, start in the gradient] of each pair of segments.

    Args:
        segments: The place of a tensor in the model's arena, and in the gradient's.
        joins: Whether neighbours become one run, where they are neighbours on both sides.
    """
    runs: list[list[int]] = []
    for there, here in segments:
        length = runs[-1][1] - runs[-1][0] if runs else 0
        if joins and runs and runs[-1][1] == there.start and runs[-1][2] + length == here.start:
            runs[-1][1] = there.stop
        else:
            runs.append([there.start, there.stop, here.start])
    return np.array(runs, np.int64).reshape(-1, 3)
