"""torch's SGD, Adagrad and Adam: the contract of rules, and the formulas.

That they are torch's own is shown beside torch: tests/client/integrations/test_torch.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from stepwell_core import keras_config
from stepwell_core.errors import InvalidArgument
from stepwell_core.layout import Layout, Tensor
from stepwell_core.optimizers import PerPush, TorchAdagrad, TorchAdam, TorchSGD, torch_adagrad
from stepwell_core.optimizers.torch_sgd import update_momentum, update_nesterov
from stepwell_core.pipeline import Gradient, Pipeline

from tests.core.optimizers.contract import RuleContract


class TestTorchSGD(RuleContract):
    optimizer = TorchSGD
    variants = [{}, {"momentum": 0.9, "dampening": 0.1}, {"momentum": 0.9, "nesterov": True}]  # noqa: RUF012

    def test_each_rule_is_its_formula(self) -> None:
        """The learning rate stays outside the momentum; w = 1, g = 2, m = 0.5, rate 0.25."""
        # Act / Assert
        assert update_momentum(1.0, 2.0, 0.5, 0.25, 0.5, 1.0) == (1 - 0.25 * 2.25, 2.25)
        assert update_nesterov(1.0, 2.0, 0.5, 0.25, 0.5, 1.0) == (1 - 0.25 * 3.125, 2.25)

    def test_the_first_gradient_is_not_dampened(self) -> None:
        """torch begins its momentum buffer with the gradient itself."""
        # Arrange
        rule = TorchSGD(momentum=0.9, dampening=0.5)

        # Act / Assert
        assert [rule.scalars(np.float64(1), t)[2] for t in (0, 1)] == [1.0, 0.5]

    @pytest.mark.parametrize(
        "options",
        [
            {"momentum": -0.1},
            {"nesterov": True},
            {"momentum": 0.9, "nesterov": True, "dampening": 0.1},
        ],
    )
    def test_what_torch_refuses_is_refused(self, options: dict[str, object]) -> None:
        """A negative momentum, and Nesterov without momentum or with dampening."""
        # Act / Assert
        with pytest.raises(InvalidArgument, match="omentum"):
            TorchSGD(**options)  # type: ignore[arg-type]


class TestTorchAdagrad(RuleContract):
    optimizer = TorchAdagrad
    variants = [{}, {"learning_rate_decay": 0.5, "initial_accumulator_value": 0.1}]  # noqa: RUF012

    def test_the_rule_is_its_formula(self) -> None:
        """Epsilon is outside the root: w = 1, a = 5, g = 2, rate 0.5, epsilon 1."""
        # Act / Assert
        assert torch_adagrad.update(1.0, 2.0, 5.0, 0.5, 1.0) == (1 - 0.5 * 2 / 4, 9.0)


class TestTorchAdam(RuleContract):
    optimizer = TorchAdam
    variants = [{}, {"amsgrad": True}, {"decoupled_weight_decay": True}]  # noqa: RUF012

    def test_epsilon_is_added_to_the_corrected_velocity(self) -> None:
        """At the first step the corrected momentum is g, and the root of the velocity |g|."""
        # Arrange
        rule = TorchAdam(0.5, epsilon=1.0)
        scalars = rule.scalars(np.float64(0.5), 0)

        # Act
        w, _, _ = rule.update(np.float64(1), np.float64(3), np.float64(0), np.float64(0), *scalars)

        # Assert
        assert w == pytest.approx(1 - 0.5 * 3 / (3 + 1), rel=1e-12)

    def test_corrections_lose_nothing_in_float32(self) -> None:
        """1 - beta_2 ** t is computed in float64: in float32 it is wrong by 1e-5 at first."""
        # Act
        root = TorchAdam().scalars(np.float32(1), 0)[4]

        # Assert
        assert root == np.float32(np.sqrt(1 - 0.999))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (TorchSGD(0.5, weight_decay=0.25), 2 - 0.5 * (3 + 0.25 * 2)),
        (TorchAdam(0.5, weight_decay=0.25, decoupled_weight_decay=True), 2 - 2 * 0.25 * 0.5 - 0.5),
        (TorchAdam(0.5, weight_decay=0.25), 2 - 0.5),
    ],
    ids=["L2", "decoupled", "L2 of Adam"],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_weight_decay_goes_where_the_rule_says(
    rule: TorchSGD, expected: float, compiled: bool
) -> None:
    """Into the gradient, or into the parameter; w = 2, g = 3."""
    # Arrange
    layout = Layout([Tensor("w", (1,), "float64")])
    pipeline = Pipeline(layout, rule, compiled=compiled)
    w, g = {"float64": np.array([2.0])}, Gradient(layout, {"float64": np.array([3.0])})

    # Act
    pipeline.apply(w, w, pipeline.new_slots(), g, pipeline.scalars(0))

    # Assert
    assert w["float64"][0] == pytest.approx(expected, rel=1e-7)


def test_a_value_that_comes_with_each_push_survives_json() -> None:
    """Also weight decay and momentum, which only these rules may have so."""
    # Arrange
    rule = TorchSGD(PerPush(), momentum=PerPush(), weight_decay=PerPush())

    # Act
    again = keras_config.deserialize(keras_config.serialize(rule))

    # Assert
    assert again == rule.with_values({"name": "torch_sgd"})
    assert keras_config.serialize(rule)["module"] == "stepwell"
