r"""Adam.

With gradient g, momentum m, velocity v and step t, counted from 1:

    alpha = learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t)
    m = m + (g - m) * (1 - beta_1)
    v = v + (g*g - v) * (1 - beta_2)
    w = w - (m * alpha) / (sqrt(v) + epsilon)

Source: Kingma and Ba, 2014, https://arxiv.org/abs/1412.6980, as Keras 3 computes it. The variant is
the one just before Section 2.1 of the paper: the bias corrections are folded into alpha, so epsilon
is the paper's "epsilon hat", not the epsilon of Algorithm 1 (which torch and optax use).

With amsgrad (Reddi et al., 2018, https://openreview.net/forum?id=ryQu7f-RZ) v_hat = max(v_hat, v)
takes the place of v in the last line; as in Keras, the maximum is taken without bias correction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stepwell_core.optimizers.base import Hyperparameter, Optimizer, Scalar, number


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, with Keras's arguments; `beta_1` and `beta_2` may also be callables.

    Attributes:
        beta_1: Decay of the momentum.
        beta_2: Decay of the velocity.
        epsilon: The paper's "epsilon hat", see the module.
        amsgrad: Use the largest velocity so far, in the slot `velocity_hat`.
    """

    learning_rate: Hyperparameter = 0.001
    beta_1: Hyperparameter = 0.9
    beta_2: Hyperparameter = 0.999
    epsilon: float = 1e-7
    amsgrad: bool = False

    per_push_names: ClassVar[tuple[str, ...]] = ("learning_rate", "beta_1", "beta_2")

    @property
    def slots(self) -> dict[str, float]:
        """`momentum`, `velocity` and, with amsgrad, `velocity_hat`; all begin at zero."""
        slots = {"momentum": 0.0, "velocity": 0.0}
        return slots | {"velocity_hat": 0.0} if self.amsgrad else slots

    @property
    def update(self) -> Callable[..., tuple[Any, ...]]:
        """The rule with or without amsgrad."""
        return update_amsgrad if self.amsgrad else update

    def scalars(self, learning_rate: Scalar, iterations: int) -> tuple[Scalar, ...]:
        """Return (alpha, 1 - beta_1, 1 - beta_2, epsilon)."""
        dtype = type(learning_rate)
        beta_1, beta_2 = number(self.beta_1), number(self.beta_2)
        t = dtype(iterations + 1)
        beta_1_power = np.power(dtype(beta_1), t)
        beta_2_power = np.power(dtype(beta_2), t)
        alpha = learning_rate * np.sqrt(1 - beta_2_power) / (1 - beta_1_power)
        # Keras subtracts the betas as Python floats, so the rounding to the dtype comes last.
        return alpha, dtype(1 - beta_1), dtype(1 - beta_2), dtype(self.epsilon)


def update(w, g, m, v, alpha, one_minus_beta_1, one_minus_beta_2, epsilon):  # type: ignore[no-untyped-def]
    """One element of Adam."""
    m = m + (g - m) * one_minus_beta_1
    v = v + (g * g - v) * one_minus_beta_2
    w = w - (m * alpha) / (np.sqrt(v) + epsilon)
    return w, m, v


def update_amsgrad(w, g, m, v, v_hat, alpha, one_minus_beta_1, one_minus_beta_2, epsilon):  # type: ignore[no-untyped-def]
    """One element of Adam with amsgrad."""
    m = m + (g - m) * one_minus_beta_1
    v = v + (g * g - v) * one_minus_beta_2
    v_hat = np.maximum(v_hat, v)
    w = w - (m * alpha) / (np.sqrt(v_hat) + epsilon)
    return w, m, v, v_hat
