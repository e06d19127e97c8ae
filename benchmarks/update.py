"""The update alone: our compiled step against torch's fused Adam and against Keras on NumPy.

One thread each, float32, Adam; 25.6 M parameters (ResNet-50's size), and 10,000 in 20 tensors for
the cost of a call. Keras runs first and by itself: its NumPy backend takes half a second a step and
leaves the caches cold.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import Adam
from stepwell_core.pipeline import Gradient, Pipeline

from benchmarks.measure import Result, at_least, at_most, medians, ms, shown, within

LARGE = 25_600_000
SMALL_TENSORS, SMALL_SIZE = 20, 500
ROUNDS = 15
SMALL_STEPS = 2_000


def run(size: int = LARGE, rounds: int = ROUNDS, small_steps: int = SMALL_STEPS) -> Result:
    """Measure everything."""
    large = Layout([Tensor("w", (size,), "float32")])
    gradient = np.random.default_rng(0).standard_normal(size).astype(np.float32) * 0.01
    all_options = Adam(
        1e-3, global_clipnorm=1.0, weight_decay=1e-4, use_ema=True, ema_overwrite_frequency=None
    )
    contenders: dict[str, Callable[[], object]] = {
        "ours": step_of(large, Adam(1e-3), gradient),
        "ours, clip scale + decay + EMA": step_of(large, all_options, gradient, GivenNorm),
        "ours, clip + decay + EMA": step_of(large, all_options, gradient),
    }
    torch_step = torch_of(gradient)
    if torch_step is not None:
        contenders["torch fused"] = torch_step
    times = medians(contenders, rounds)
    keras_time = medians({"keras": keras_of(gradient)}, 3)["keras"]
    small_us = small_step_us(small_steps)
    plain = times["ours"]
    rows = []
    if "torch fused" in times:
        rows.append(
            at_most(
                "Adam step, 25.6 M float32, against torch fused (1 thread)",
                plain / times["torch fused"],
                1.1,
                f"{ms(plain)} against {ms(times['torch fused'])}",
            )
        )
    rows += [
        at_least(
            "the same against Keras on NumPy",
            keras_time / plain,
            20,
            f"{ms(plain)} against {ms(keras_time)}",
        ),
        at_most(
            "clip scale + weight decay + EMA against the plain step",
            times["ours, clip scale + decay + EMA"] / plain,
            1.6,
            f"{ms(times['ours, clip scale + decay + EMA'])} against {ms(plain)}",
        ),
        shown(
            "the same with the pass for the norm (global_clipnorm)",
            times["ours, clip + decay + EMA"] / plain,
            f"{ms(times['ours, clip + decay + EMA'])} against {ms(plain)}",
        ),
        within("Adam step, 10,000 parameters in 20 tensors, in all", small_us, 40, "us"),
    ]
    return Result(rows, times | {"keras": keras_time, "small": small_us * 1e-6})


class GivenNorm(Pipeline):
    """A pipeline that is told the norm: the loop alone, without the pass over the gradient."""

    def _clip_scales(self, *arguments: object) -> dict[tuple[str, int], np.ndarray]:
        return {}  # every run then takes the plan's own numerators and denominators


def step_of(
    layout: Layout, optimizer: Adam, gradient: np.ndarray, kind: type[Pipeline] = Pipeline
) -> Callable[[], object]:
    """Return one whole step in place, as a server makes it: scalars, norms, kernels."""
    pipeline = kind(layout, optimizer)
    weights, slots = layout.new_arenas(1.0), pipeline.new_slots()
    for arenas in slots.values():
        arenas["float32"].fill(0.0)  # touched, so that no page fault is measured
    pushed = Gradient(layout, {"float32": gradient})
    iterations = iter(range(1 << 30))

    def step() -> None:
        pipeline.apply(weights, weights, slots, pushed, pipeline.scalars(next(iterations)))

    return step


def small_step_us(steps: int) -> float:
    """Return the microseconds of one step of a small model, over many."""
    layout = Layout(Tensor(f"t{i}", (SMALL_SIZE,), "float32") for i in range(SMALL_TENSORS))
    gradient = np.full(layout.size, 0.01, np.float32)
    step = step_of(layout, Adam(1e-3), gradient)

    def many() -> None:
        for _ in range(steps):
            step()

    return medians({"small": many}, 7)["small"] / steps * 1e6


def torch_of(gradient: np.ndarray) -> Callable[[], object] | None:
    """Return a step of torch's fused Adam on one thread, or None where torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    parameter = torch.nn.Parameter(torch.ones(len(gradient)))
    parameter.grad = torch.from_numpy(gradient)
    optimizer = torch.optim.Adam([parameter], lr=1e-3, eps=1e-7, fused=True)
    return optimizer.step


def keras_of(gradient: np.ndarray) -> Callable[[], object]:
    """Return a step of Keras's Adam on its NumPy backend."""
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    import keras

    variable = keras.Variable(np.ones_like(gradient))
    optimizer = keras.optimizers.Adam(1e-3)
    return lambda: optimizer.apply([gradient], [variable])
