"""The optimizers: one file, one rule. `OPTIMIZERS` is the registry; a new one is one line in it."""

from stepwell_core.optimizers.adagrad import Adagrad
from stepwell_core.optimizers.adam import Adam
from stepwell_core.optimizers.base import Optimizer, PerPush
from stepwell_core.optimizers.sgd import SGD
from stepwell_core.optimizers.torch_adagrad import TorchAdagrad
from stepwell_core.optimizers.torch_adam import TorchAdam
from stepwell_core.optimizers.torch_sgd import TorchSGD

OPTIMIZERS: dict[str, type[Optimizer]] = {
    optimizer.__name__.lower(): optimizer
    for optimizer in (SGD, Adagrad, Adam, TorchSGD, TorchAdagrad, TorchAdam)
}
"""By lower-case class name, since Keras compares names without regard to case."""

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "Optimizer",
    "PerPush",
    "TorchAdagrad",
    "TorchAdam",
    "TorchSGD",
]
