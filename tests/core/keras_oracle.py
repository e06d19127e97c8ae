"""Keras itself, on its NumPy backend, as the oracle of one model's training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SLOT_ATTRIBUTES = {  # where Keras keeps what we call by name
    "momentum": ("_momentums", "momentums"),
    "velocity": ("_velocities",),
    "velocity_hat": ("_velocity_hats",),
    "accumulator": ("_accumulators",),
    "average": ("_model_variables_moving_average",),
    "gradient_accumulator": ("_accumulated_gradients",),
}


class KerasModel:
    """Variables and an optimizer of Keras.

    Args:
        parameters: By name, float32 or float64.
        config: Of the optimizer, in Keras's JSON form.
    """

    def __init__(self, parameters: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
        import keras
        from keras.src.backend.common import dtypes

        # Off TensorFlow, Keras's type promotion turns float64 into float32 in the middle of its
        # formulas, though the variables stay float64. Stepwell's float64 is float64; so is the
        # oracle's, as on TensorFlow.
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
        self.names = list(parameters)
        self.variables = [
            keras.Variable(value, dtype=value.dtype.name, name=name.replace("/", "_"))
            for name, value in parameters.items()
        ]
        self.optimizer = keras.optimizers.deserialize(copy.deepcopy(dict(config)))

    def apply(self, gradients: Mapping[str, np.ndarray]) -> None:
        """Make one call with gradients by name; a name that is not there has none."""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            self.optimizer.apply([gradients.get(name) for name in self.names], self.variables)

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The variables by name."""
        return self._named(self.variables)

    def slot(self, name: str) -> dict[str, np.ndarray]:
        """Return one slot by the tensors' names."""
        attribute = next(a for a in SLOT_ATTRIBUTES[name] if hasattr(self._inner, a))
        return self._named(getattr(self._inner, attribute))

    def slots(self) -> dict[str, dict[str, np.ndarray]]:
        """Return all slots that the optimizer has."""
        present = [
            name
            for name, attributes in SLOT_ATTRIBUTES.items()
            if any(getattr(self._inner, attribute, None) for attribute in attributes)
        ]
        return {name: self.slot(name) for name in present}

    @property
    def _inner(self) -> Any:
        return getattr(self.optimizer, "inner_optimizer", self.optimizer)

    def _named(self, variables: Sequence[Any]) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(variable.value)
            for name, variable in zip(self.names, variables, strict=True)
        }
