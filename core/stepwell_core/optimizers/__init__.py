"""The optimizers: one file, one rule. `OPTIMIZERS` is the registry; a new one is one line in it."""

from stepwell_core.optimizers.adagrad import Adagrad
from stepwell_core.optimizers.adam import Adam
from stepwell_core.optimizers.base import Optimizer, PerPush
from stepwell_core.optimizers.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {
    optimizer.__name__.lower(): optimizer for optimizer in (SGD, Adagrad, Adam)
}
"""By lower-case class name, since Keras compares names without regard to case."""

__all__ = ["OPTIMIZERS", "SGD", "Adagrad", "Adam", "Optimizer", "PerPush"]
