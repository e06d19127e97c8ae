"""One gradient out of several: the weighted mean, tensor by tensor over those who sent it.

    sum(weight * g) / sum(weight)

Summed in the parameter's dtype, in the given order, so the bytes depend on the order and on nothing
else. A gradient's loss scale is taken out on the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell_core import kernels
from stepwell_core.gradient import Gradient
from stepwell_core.kernels import Stages
from stepwell_core.layout import Arenas, Layout
from stepwell_core.plan import make_runs


def aggregate(
    layout: Layout, gradients: Sequence[Gradient], weights: Sequence[float], *, compiled: bool
) -> Gradient:
    """Return the weighted mean in new arenas; it has no loss scale.

    Args:
        layout: The model's tensors; those that nobody sent are missing in the result.
        gradients: At least one.
        weights: One for each gradient; finite and > 0.
        compiled: False runs the same loops as plain Python, for tests.
    """
    sent = {name for gradient in gradients for name in gradient.layout.names}
    layout = layout.select(name for name in layout.names if name in sent)
    total = layout.new_arenas(None)
    weight_sums: dict[str, float] = {}
    for gradient, weight in zip(gradients, weights, strict=True):
        for is_first in (True, False):
            names = {n for n in gradient.layout.names if (n not in weight_sums) is is_first}
            _add(total, layout, gradient, names, weight, is_first=is_first, compiled=compiled)
        for name in gradient.layout.names:
            weight_sums[name] = weight_sums.get(name, 0.0) + weight
    for name, weight_sum in weight_sums.items():
        if weight_sum != 1.0:
            part = layout.segments[name].view(total)
            np.divide(part, part.dtype.type(weight_sum), out=part)
    return Gradient(layout, total)


def _add(
    total: Arenas,
    layout: Layout,
    gradient: Gradient,
    names: set[str],
    weight: float,
    *,
    is_first: bool,
    compiled: bool,
) -> None:
    """Add the named tensors of one gradient; the first of a tensor begins its sum."""
    for dtype in gradient.layout.sizes:
        segments = [
            (layout.segments[name], segment)
            for name, segment in gradient.layout.segments.items()
            if segment.tensor.dtype == dtype and name in names
        ]
        if not segments:
            continue
        g, payload = gradient.bits(dtype)
        stages = Stages(payload=payload, unscales=gradient.loss_scale is not None)
        constants = np.ones(kernels.CONSTANTS, dtype)
        constants[kernels.LOSS_SCALE] = gradient.loss_scale or 1.0
        kernel = kernels.aggregate_kernel(stages, is_first=is_first, compiled=compiled)
        kernel(g, total[dtype], make_runs(segments), constants, np.dtype(dtype).type(weight))
