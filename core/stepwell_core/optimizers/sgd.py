r"""Stochastic gradient descent, with momentum and Nesterov momentum.

With gradient g, momentum slot m and the hyperparameter `momentum`:

    w = w - g * learning_rate                           momentum == 0

    m = m * momentum - g * learning_rate                otherwise
    w = w + m                                           plain
    w = w + (m * momentum - g * learning_rate)          nesterov

Source: Keras 3; the Nesterov form is Sutskever et al., 2013 ("On the importance of initialization
and momentum in deep learning"), rewritten for the look-ahead point. The learning rate is inside m,
as in Keras; torch keeps it outside, so the two differ as soon as the learning rate changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepwell_core.errors import InvalidArgument, shown
from stepwell_core.optimizers.base import Hyperparameter, Optimizer, Scalar


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with Keras's arguments.

    Attributes:
        momentum: A float in [0, 1]; 0 needs no slot.
        nesterov: Use Nesterov momentum; without effect when momentum is 0.
    """

    learning_rate: Hyperparameter = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        """Refuse a momentum outside [0, 1], as Keras does."""
        super().__post_init__()
        if not isinstance(self.momentum, float) or not 0 <= self.momentum <= 1:
            raise InvalidArgument(
                "`momentum` must be a float between [0, 1]. Received: "
                f"momentum={shown(self.momentum)}"
            )

    @property
    def slots(self) -> dict[str, float]:
        """`momentum`, if the hyperparameter is not 0; it begins at zero."""
        return {"momentum": 0.0} if self.momentum else {}

    @property
    def update(self) -> Callable[..., tuple[Any, ...]]:
        """The rule without momentum, with it, or with Nesterov's."""
        if not self.momentum:
            return update
        return update_nesterov if self.nesterov else update_momentum

    def scalars(self, learning_rate: Scalar, iterations: int) -> tuple[Scalar, ...]:
        """Return (learning_rate,) or (learning_rate, momentum)."""
        if not self.momentum:
            return (learning_rate,)
        return learning_rate, type(learning_rate)(self.momentum)


def update(w, g, learning_rate):  # type: ignore[no-untyped-def]
    """One element of gradient descent."""
    w = w - g * learning_rate
    return (w,)


def update_momentum(w, g, m, learning_rate, momentum):  # type: ignore[no-untyped-def]
    """One element with momentum."""
    m = m * momentum - g * learning_rate
    w = w + m
    return w, m


def update_nesterov(w, g, m, learning_rate, momentum):  # type: ignore[no-untyped-def]
    """One element with Nesterov momentum."""
    m = m * momentum - g * learning_rate
    w = w + (m * momentum - g * learning_rate)
    return w, m
