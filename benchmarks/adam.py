"""Work that can be checked: a gradient whose Adam steps are known, and whether they were made.

For a gradient that does not change, the bias-corrected moments of Adam are the gradient and its
square from the first step on, so each step moves each parameter by the learning rate against the
gradient's sign. Who loses the moments between steps, forgets to count, or applies nothing, is seen.

NumPy only, of any version since 1.23: the peers check themselves with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LEARNING_RATE = 1e-3
STEPS = 3


def gradient(size: int, seed: int = 0) -> Any:
    """Return float32 gradients of 0.005 to 0.02, of either sign: no epsilon matters to them."""
    random = np.random.default_rng(seed)
    values = random.random(size, np.float32)
    values *= 0.015
    values += 0.005
    values[random.random(size, np.float32) < 0.5] *= -1
    return values


def parameters(size: int, seed: int = 1) -> Any:
    """Return float32 parameters of -1 to 1."""
    values = np.random.default_rng(seed).random(size, np.float32)
    values *= 2
    values -= 1
    return values


def check(push: Callable[[], object], pull: Callable[[], Any], pushed: Any) -> None:
    """Push three times, and check that each parameter moved as Adam moves it.

    Args:
        push: Has one step made with `pushed`.
        pull: Returns all parameters, flat.
        pushed: The gradient, flat.

    Raises:
        AssertionError: They did not move, or by something else.
    """
    before = np.array(pull())
    for _ in range(STEPS):
        push()
    moved = np.asarray(pull()) - before
    expected = -STEPS * LEARNING_RATE * np.sign(np.asarray(pushed, np.float32))
    worst = float(np.abs(moved - expected).max())
    if not worst < 0.02 * LEARNING_RATE:
        raise AssertionError(
            f"{STEPS} Adam steps move each parameter by {STEPS * LEARNING_RATE:g}. Received: "
            f"{worst:g} away from that"
        )
