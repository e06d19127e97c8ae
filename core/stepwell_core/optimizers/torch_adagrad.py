r"""Adagrad as torch computes it.

With gradient g, accumulator a and step t, counted from 1:

    g = g + weight_decay * w                            the stage before; L2, not decoupled
    rate = learning_rate / (1 + (t - 1) * learning_rate_decay)
    a = a + g*g
    w = w - rate * (g / (sqrt(a) + epsilon))

Source: torch 2.13, `torch.optim.Adagrad`. What differs from Keras's: epsilon stands outside the
root, the accumulator begins at zero, and weight decay goes into the gradient. What differs from
torch's: t counts the model's steps, not each tensor's, which matters with `learning_rate_decay`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stepwell_core.optimizers.base import Hyperparameter, Optimizer, Scalar


@dataclass(frozen=True)
class TorchAdagrad(Optimizer):
    """Adagrad, with torch's numbers.

    Attributes:
        learning_rate_decay: torch's `lr_decay`.
        initial_accumulator_value: What the accumulator begins at.
        epsilon: Added to the root.
    """

    learning_rate: Hyperparameter = 0.01
    learning_rate_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    epsilon: float = 1e-10

    module: ClassVar[str] = "stepwell"
    per_push_names: ClassVar[tuple[str, ...]] = ("learning_rate", "weight_decay")

    @property
    def couples_weight_decay(self) -> bool:
        """True: it is added to the gradient."""
        return True

    @property
    def slots(self) -> dict[str, float]:
        """`accumulator`, the sum of squared gradients; torch calls it `sum`."""
        return {"accumulator": self.initial_accumulator_value}

    @property
    def update(self) -> Callable[..., tuple[Any, ...]]:
        """The rule."""
        return update

    def scalars(self, learning_rate: Scalar, iterations: int) -> tuple[Scalar, ...]:
        """Return (rate, epsilon)."""
        dtype = type(learning_rate)
        rate = float(learning_rate) / (1 + iterations * self.learning_rate_decay)
        return dtype(rate), dtype(self.epsilon)


def update(w, g, a, rate, epsilon):  # type: ignore[no-untyped-def]
    """One element of Adagrad."""
    a = a + g * g
    w = w - rate * (g / (np.sqrt(a) + epsilon))
    return w, a
