"""SGD: the contract of optimizers, and what is its own."""

from __future__ import annotations

import numpy as np
import pytest
from stepwell_core.errors import InvalidArgument
from stepwell_core.optimizers import SGD
from stepwell_core.optimizers.sgd import update, update_momentum, update_nesterov

from tests.core.optimizers.contract import OptimizerContract


class TestSGD(OptimizerContract):
    optimizer = SGD
    variants = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]  # noqa: RUF012

    def test_each_rule_is_its_formula(self) -> None:
        """One step from w = 1, m = 0.5, g = 2 with learning rate 0.25 and momentum 0.5."""
        # Act
        plain = update(1.0, 2.0, 0.25)
        momentum = update_momentum(1.0, 2.0, 0.5, 0.25, 0.5)
        nesterov = update_nesterov(1.0, 2.0, 0.5, 0.25, 0.5)

        # Assert
        assert plain == (0.5,)
        assert momentum == (0.75, -0.25)
        assert nesterov == (0.375, -0.25)

    def test_without_momentum_there_is_no_slot(self) -> None:
        """A momentum of 0 costs no memory; nesterov is without effect then."""
        # Act
        optimizer = SGD(nesterov=True)

        # Assert
        assert optimizer.slots == {}
        assert optimizer.update is update
        assert optimizer.scalars(np.float32(0.1), 0) == (np.float32(0.1),)

    @pytest.mark.parametrize("momentum", [-0.1, 1.1, 1, "0.9", None, True, float("nan")])
    def test_a_momentum_outside_its_range_is_refused(self, momentum: object) -> None:
        """As in Keras, momentum is a float in [0, 1]."""
        # Act
        with pytest.raises(InvalidArgument) as refusal:
            SGD(momentum=momentum)  # type: ignore[arg-type]

        # Assert
        assert f"Received: momentum={momentum!r}" in refusal.value.message
