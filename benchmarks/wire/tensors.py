"""The same bytes in many tensors: ResNet-50's 161 against one of as many elements."""

from __future__ import annotations

import contextlib
import math

from benchmarks import adam, ours
from benchmarks.measure import Result, at_most, medians, ms
from benchmarks.server import serving
from benchmarks.shapes import Shapes, resnet50

ROUNDS = 15


def run(shapes: Shapes | None = None, rounds: int = ROUNDS) -> Result:
    """Measure everything; `shapes` are those of the many tensors."""
    shapes = shapes or resnet50()
    size = sum(math.prod(shape) for shape in shapes.values())
    contenders = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        for model, tensors in (("one", {ours.TENSOR: (size,)}), ("many", shapes)):
            start = ours.split(adam.parameters(size), tensors)
            gradients = ours.split(adam.gradient(size), tensors)
            worker = stack.enter_context(ours.working(server.url, start, model=model))
            ours.check(worker, gradients)
            contenders[f"{model}/push"] = lambda w=worker, g=gradients: w.push(g)
            contenders[f"{model}/pull"] = ours.pulls(worker)
        seconds = medians(contenders, rounds)
    rows = [
        at_most(
            f"{way} 102 MB over HTTP in {len(shapes)} tensors, against one",
            seconds[f"many/{way}"] / seconds[f"one/{way}"],
            1.15,
            f"{ms(seconds[f'many/{way}'])} against {ms(seconds[f'one/{way}'])}",
        )
        for way in ("push", "pull")
    ]
    return Result(rows, seconds)
