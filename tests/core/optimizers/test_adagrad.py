"""Adagrad: the contract of optimizers, and what is its own."""

from __future__ import annotations

import pytest
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import Adagrad
from stepwell_core.optimizers.adagrad import update
from stepwell_core.pipeline import Pipeline

from tests.core.optimizers.contract import OptimizerContract


class TestAdagrad(OptimizerContract):
    optimizer = Adagrad
    variants = [{}, {"initial_accumulator_value": 0.5, "epsilon": 1e-3}]  # noqa: RUF012

    def test_the_rule_is_its_formula(self) -> None:
        """One step from w = 1, a = 5, g = 2 with learning rate 0.5; epsilon is under the root."""
        # Act
        w, a = update(1.0, 2.0, 5.0, 0.5, 7.0)

        # Assert
        assert (w, a) == (0.75, 9.0)

    @pytest.mark.parametrize("initial", [0.0, 0.1, 2.5])
    def test_the_accumulator_begins_at_its_initial_value(self, initial: float) -> None:
        """Every element of the slot begins there, in both dtypes."""
        # Arrange
        layout = Layout([Tensor("a", (3,), "float32"), Tensor("b", (2,), "float64")])

        # Act
        slots = Pipeline(layout, Adagrad(initial_accumulator_value=initial)).new_slots()

        # Assert
        assert all(
            (array == array.dtype.type(initial)).all() for array in slots["accumulator"].values()
        )
