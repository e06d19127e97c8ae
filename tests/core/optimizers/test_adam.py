"""Adam: the contract of optimizers, and what is its own."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell_core.errors import InvalidArgument
from stepwell_core.optimizers import Adam, PerPush
from stepwell_core.optimizers.adam import update, update_amsgrad

from tests.core.optimizers.contract import OptimizerContract


class TestAdam(OptimizerContract):
    optimizer = Adam
    variants = [{}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3}, {"amsgrad": True}]  # noqa: RUF012
    uses_powers = True

    def test_the_rule_is_its_formula(self) -> None:
        """One step with alpha 0.5, 1 - beta_1 = 0.5, 1 - beta_2 = 0.25 and epsilon 1."""
        # Act
        plain = update(1.0, 4.0, 2.0, 16.0 - 16 / 3 + 16 / 3, 0.5, 0.5, 0.25, 1.0)
        amsgrad = update_amsgrad(1.0, 4.0, 2.0, 16.0, 64.0, 0.5, 0.5, 0.25, 1.0)

        # Assert
        assert plain == (1.0 - 1.5 / 5.0, 3.0, 16.0)
        assert amsgrad == (1.0 - 1.5 / 9.0, 3.0, 16.0, 64.0)

    def test_the_velocity_hat_never_falls(self) -> None:
        """With amsgrad a larger velocity takes the place of the largest so far."""
        # Act
        _, _, v, v_hat = update_amsgrad(1.0, 4.0, 2.0, 16.0, 2.0, 0.5, 0.5, 0.25, 1.0)

        # Assert
        assert v == v_hat == 16.0

    def test_the_bias_corrections_are_folded_into_alpha(self) -> None:
        """At the first step alpha is lr * sqrt(1 - beta_2) / (1 - beta_1)."""
        # Act
        alpha, *_ = Adam(beta_1=0.5, beta_2=0.75).scalars(np.float64(0.1), 0)

        # Assert
        assert alpha == np.float64(0.1) * np.sqrt(0.25) / 0.5

    def test_one_minus_beta_is_rounded_last(self) -> None:
        """Keras subtracts in double: 1 - 0.999 in float32 would be 0.0009999871."""
        # Act
        _, _, one_minus_beta_2, _ = Adam().scalars(np.float32(0.1), 0)

        # Assert
        assert one_minus_beta_2 == np.float32(1 - 0.999)
        assert one_minus_beta_2 != np.float32(1) - np.float32(0.999)

    def test_betas_may_come_with_each_push(self) -> None:
        """`PerPush` betas are declared, and numbers take their place."""
        # Arrange
        optimizer = Adam(beta_1=PerPush(), beta_2=PerPush())

        # Act
        ready = optimizer.with_values({"beta_1": 0.5, "beta_2": 0})

        # Assert
        assert optimizer.declared_per_push == ("beta_1", "beta_2")
        assert (ready.beta_1, ready.beta_2) == (0.5, 0.0)
        assert ready.scalars(np.float32(0.1), 0)[1] == np.float32(0.5)

    @pytest.mark.parametrize("beta", ["0.9", None, True, float("inf")])
    def test_a_beta_that_is_no_number_is_refused(self, beta: object) -> None:
        """A value of another type is an error with the value in it."""
        # Act
        with pytest.raises(InvalidArgument) as refusal:
            Adam(beta_2=beta)  # type: ignore[arg-type]

        # Assert
        assert f"Received: beta_2={beta!r}" in refusal.value.message
