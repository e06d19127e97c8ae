r"""Adam and AdamW as torch computes them.

With gradient g, momentum m, velocity v and step t, counted from 1:

    g = g + weight_decay * w                            the stage before, if it is not decoupled
    w = w - w * weight_decay * learning_rate            ... and if it is (AdamW)
    m = m + (g - m) * (1 - beta_1)
    v = beta_2 * v + (1 - beta_2) * g*g
    rate = learning_rate / (1 - beta_1**t)
    w = w - rate * (m / (sqrt(v) / sqrt(1 - beta_2**t) + epsilon))

Source: torch 2.13, `torch.optim.Adam`; Algorithm 1 of Kingma and Ba, 2014,
https://arxiv.org/abs/1412.6980. What differs from Keras's: epsilon is added after the velocity's
bias is corrected, and the corrections are computed in float64. With amsgrad v_hat = max(v_hat, v)
takes the place of v in the last line. What differs from torch's: t counts the model's steps, not
each tensor's, which matters where a tensor has no gradient in some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stepwell_core.optimizers.base import Hyperparameter, Optimizer, Scalar, number


@dataclass(frozen=True)
class TorchAdam(Optimizer):
    """Adam, or with `decoupled_weight_decay` AdamW, with torch's numbers.

    Attributes:
        beta_1: Decay of the momentum.
        beta_2: Decay of the velocity.
        epsilon: Added to the root of the corrected velocity.
        amsgrad: Use the largest velocity so far, in the slot `velocity_hat`.
        decoupled_weight_decay: Decay the parameter instead of adding to the gradient.
    """

    learning_rate: Hyperparameter = 0.001
    beta_1: Hyperparameter = 0.9
    beta_2: Hyperparameter = 0.999
    epsilon: float = 1e-8
    amsgrad: bool = False
    decoupled_weight_decay: bool = False

    module: ClassVar[str] = "stepwell"
    per_push_names: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "beta_1",
        "beta_2",
        "weight_decay",
    )

    @property
    def couples_weight_decay(self) -> bool:
        """Whether it is added to the gradient."""
        return not self.decoupled_weight_decay

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
        """Return (rate, 1 - beta_1, beta_2, 1 - beta_2, root of the correction, epsilon)."""
        dtype, t = type(learning_rate), iterations + 1
        beta_1, beta_2 = number(self.beta_1), number(self.beta_2)
        rate = np.float64(learning_rate) / (1 - beta_1**t)
        root = np.sqrt(np.float64(1 - beta_2**t))
        scalars = (rate, 1 - beta_1, beta_2, 1 - beta_2, root, self.epsilon)
        return tuple(dtype(scalar) for scalar in scalars)


def update(w, g, m, v, rate, one_minus_beta_1, beta_2, one_minus_beta_2, root, epsilon):  # type: ignore[no-untyped-def]
    """One element of Adam."""
    m = m + (g - m) * one_minus_beta_1
    v = beta_2 * v + one_minus_beta_2 * (g * g)
    w = w - rate * (m / (np.sqrt(v) / root + epsilon))
    return w, m, v


def update_amsgrad(  # type: ignore[no-untyped-def]
    w, g, m, v, v_hat, rate, one_minus_beta_1, beta_2, one_minus_beta_2, root, epsilon
):
    """One element of Adam with amsgrad."""
    m = m + (g - m) * one_minus_beta_1
    v = beta_2 * v + one_minus_beta_2 * (g * g)
    v_hat = np.maximum(v_hat, v)
    w = w - rate * (m / (np.sqrt(v_hat) / root + epsilon))
    return w, m, v, v_hat
