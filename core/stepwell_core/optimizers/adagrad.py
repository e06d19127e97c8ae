r"""Adagrad.

With gradient g and accumulator a:

    a = a + g*g
    w = w - (learning_rate * g) / sqrt(a + epsilon)

Source: Duchi et al., 2011, http://www.jmlr.org/papers/volume12/duchi11a/duchi11a.pdf, as Keras 3
computes it: epsilon stands under the root (torch adds it outside), and the accumulator begins at
`initial_accumulator_value`, not at zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell_core.optimizers.base import Hyperparameter, Optimizer, Scalar


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad, with Keras's arguments.

    Attributes:
        initial_accumulator_value: What the accumulator begins at.
        epsilon: Added under the root.
    """

    learning_rate: Hyperparameter = 0.001
    initial_accumulator_value: float = 0.1
    epsilon: float = 1e-7

    @property
    def slots(self) -> dict[str, float]:
        """`accumulator`, the sum of squared gradients."""
        return {"accumulator": self.initial_accumulator_value}

    @property
    def update(self) -> Callable[..., tuple[Any, ...]]:
        """The rule."""
        return update

    def scalars(self, learning_rate: Scalar, iterations: int) -> tuple[Scalar, ...]:
        """Return (learning_rate, epsilon)."""
        return learning_rate, type(learning_rate)(self.epsilon)


def update(w, g, a, learning_rate, epsilon):  # type: ignore[no-untyped-def]
    """One element of Adagrad."""
    a = a + g * g
    w = w - (learning_rate * g) / np.sqrt(a + epsilon)
    return w, a
