r"""Stochastic gradient descent as torch computes it.

With gradient g, momentum slot m and the hyperparameters `momentum` and `dampening`:

    g = g + weight_decay * w                            the stage before; L2, not decoupled
    m = momentum * m + (1 - dampening) * g              the first step: m = g
    g = m                                               plain
    g = g + momentum * m                                nesterov
    w = w - learning_rate * g

Source: torch 2.13, `torch.optim.SGD`. What differs from Keras's: the learning rate stays outside m,
so it can change without carrying old rates along, and weight decay goes into the gradient. What
differs from torch's: "the first step" is the model's, not each tensor's, which matters where there
is dampening and a tensor's first gradient comes later than the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from stepwell_core.errors import InvalidArgument, shown
from stepwell_core.optimizers.base import Hyperparameter, Optimizer, Scalar, number


@dataclass(frozen=True)
class TorchSGD(Optimizer):
    """Stochastic gradient descent, with torch's numbers.

    Attributes:
        momentum: >= 0; 0 needs no slot. torch calls the slot `momentum_buffer`.
        dampening: What is left out of each gradient on its way into the momentum.
        nesterov: Use Nesterov momentum; needs a momentum and no dampening.
    """

    learning_rate: Hyperparameter = 0.001
    momentum: Hyperparameter = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    module: ClassVar[str] = "stepwell"
    per_push_names: ClassVar[tuple[str, ...]] = ("learning_rate", "momentum", "weight_decay")

    def __post_init__(self) -> None:
        """Refuse what torch refuses."""
        super().__post_init__()
        if not callable(self.momentum) and self.momentum < 0:
            raise InvalidArgument(f"`momentum` must be >= 0. Received: {shown(self.momentum)}")
        if self.nesterov and (not self.momentum or self.dampening):
            raise InvalidArgument(
                "Nesterov momentum requires a momentum and zero dampening. Received: "
                f"momentum={shown(self.momentum)}, dampening={shown(self.dampening)}"
            )

    @property
    def couples_weight_decay(self) -> bool:
        """True: it is added to the gradient."""
        return True

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
        """Return (learning_rate,) or (learning_rate, momentum, 1 - dampening)."""
        if not self.momentum:
            return (learning_rate,)
        dtype = type(learning_rate)
        part = 1 - self.dampening if iterations else 1.0
        return learning_rate, dtype(number(self.momentum)), dtype(part)


def update(w, g, learning_rate):  # type: ignore[no-untyped-def]
    """One element of gradient descent."""
    w = w - learning_rate * g
    return (w,)


def update_momentum(w, g, m, learning_rate, momentum, part):  # type: ignore[no-untyped-def]
    """One element with momentum."""
    m = momentum * m + part * g
    w = w - learning_rate * m
    return w, m


def update_nesterov(w, g, m, learning_rate, momentum, part):  # type: ignore[no-untyped-def]
    """One element with Nesterov momentum."""
    m = momentum * m + part * g
    w = w - learning_rate * (g + momentum * m)
    return w, m
