"""What every optimizer must satisfy. A new one inherits the suite: see `test_adam.py`."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import json
import re
import sys
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from stepwell_core import keras_config
from stepwell_core.errors import InvalidArgument
from stepwell_core.layout import Layout
from stepwell_core.optimizers import OPTIMIZERS, Optimizer
from stepwell_core.pipeline import Gradient, Pipeline

from tests.core.golden import make_optimizers

GOLDEN = Path(__file__).parents[1] / "golden"
LAYOUT = Layout.of(make_optimizers.parameters())
ALL_STAGES: dict[str, Any] = {
    "weight_decay": 0.1,
    "clipvalue": 0.5,
    "use_ema": True,
    "loss_scale_factor": 3.0,
    "gradient_accumulation_steps": 2,
}
DTYPES = (np.float32, np.float64)
NORM_TOLERANCE = 1e-6  # norms are summed in float64 here and in float32 by Keras
POWER_TOLERANCE = 1e-5  # where this CPU's powers are other ones than the recorded


def train(
    pipeline: Pipeline, steps: int = make_optimizers.STEPS, *, in_place: bool = True
) -> dict[str, bytes]:
    """Train on the golden file's numbers; return all parameters' and slots' bytes."""
    layout = pipeline.layout
    weights, slots = layout.flatten(make_optimizers.parameters()), pipeline.new_slots()
    loss_scale = pipeline.optimizer.loss_scale_factor
    for step in range(steps):
        present = make_optimizers.gradients(step)
        selection = layout.select(present)
        gradient = Gradient(selection, selection.flatten(present), loss_scale=loss_scale)
        scalars = pipeline.scalars(step, loss_scale)
        target = weights
        if scalars.changes_parameters and not in_place:
            target = layout.new_arenas(float("nan"))
        pipeline.apply(weights, target, slots, gradient, scalars)
        weights = target
    arenas = {"parameters": weights, **slots}
    return {
        name: b"".join(array.tobytes() for array in layout.views(arena).values())
        for name, arena in arenas.items()
    }


def numbers_of(data: bytes) -> np.ndarray:
    """Return the numbers of all tensors of the golden model as float64."""
    parts, start = [], 0
    for shape, dtype in make_optimizers.TENSORS.values():
        part = np.frombuffer(data, dtype, int(np.prod(shape)), start)
        start += part.nbytes
        parts.append(part.astype(np.float64))
    return np.concatenate(parts)


def golden_pipeline(optimizer: Optimizer) -> Pipeline:
    """Return the pipeline of the golden model, as plain Python."""
    optimizer.exclude_from_weight_decay(make_optimizers.EXCLUDED)
    excluded = optimizer.excluded_from_weight_decay(LAYOUT.names)
    return Pipeline(LAYOUT, optimizer, excluded, compiled=False)


class RuleContract:
    """The tests; a subclass says which optimizer, and arguments that reach each of its rules."""

    optimizer: ClassVar[type[Optimizer]]
    variants: ClassVar[list[dict[str, Any]]]

    def test_it_is_registered_under_its_name(self) -> None:
        """A configuration finds the class by its name in lower case."""
        # Act
        registered = OPTIMIZERS[self.optimizer.__name__.lower()]

        # Assert
        assert registered is self.optimizer

    def test_a_config_survives_the_round_trip(self, variant: dict[str, Any]) -> None:
        """What `serialize` gives makes an equal optimizer, also by way of JSON text."""
        # Arrange
        optimizer = self.optimizer(**variant, name="mine", clipnorm=1.0, weight_decay=0.1)

        # Act
        config = json.loads(json.dumps(keras_config.serialize(optimizer)))
        again = keras_config.deserialize(config)

        # Assert
        assert isinstance(again, self.optimizer)
        assert keras_config.serialize(again) == config
        assert again == optimizer.with_values({"learning_rate": again.learning_rate})

    def test_every_argument_is_in_the_docstring(self) -> None:
        """`Attributes:` of the class, or of the base class, has a line for each argument."""
        # Arrange
        docs = f"{inspect.getdoc(self.optimizer)}\n{inspect.getdoc(Optimizer)}"

        # Act
        described = set(re.findall(r"^ {4}(\w+): \S", docs, re.MULTILINE))

        # Assert
        assert {field.name for field in dataclasses.fields(self.optimizer)} <= described

    def test_the_module_says_formula_and_source(self) -> None:
        """The module's docstring has the equation and where it comes from."""
        # Act
        docs = inspect.getdoc(sys.modules[self.optimizer.__module__]) or ""

        # Assert
        assert re.search(r"^ {4}w = w - ", docs, re.MULTILINE)
        assert "Source: " in docs

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_rule_is_a_plain_function_of_numbers(
        self, variant: dict[str, Any], dtype: Any
    ) -> None:
        """`update` gives the parameter and each slot, in the dtype of what it was given."""
        # Arrange
        optimizer = self.optimizer(**variant)
        scalars = optimizer.scalars(dtype(0.1), 3)
        slots = [dtype(0.5)] * len(optimizer.slots)

        # Act
        updated = optimizer.update(dtype(1), dtype(0.25), *slots, *scalars)

        # Assert
        assert inspect.isfunction(optimizer.update)
        assert getattr(sys.modules[self.optimizer.__module__], optimizer.update.__name__) is (
            optimizer.update
        )
        assert len(updated) == 1 + len(slots)
        assert {type(number) for number in updated} == {dtype}
        assert updated[0] != 1

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("iterations", [0, 1, 10_000_000])
    def test_scalars_have_the_parameters_dtype(
        self, variant: dict[str, Any], dtype: Any, iterations: int
    ) -> None:
        """A scalar of another dtype would widen the loop, so there is none at any step."""
        # Act
        scalars = self.optimizer(**variant).scalars(dtype(0.1), iterations)

        # Assert
        assert {type(scalar) for scalar in scalars} == {dtype}

    def test_a_slot_that_the_rule_reads_changes_what_it_gives(
        self, variant: dict[str, Any]
    ) -> None:
        """Slots go in and come out in the order of `slots`: no two can change places unseen."""
        # Arrange
        optimizer = self.optimizer(**variant)
        scalars = optimizer.scalars(np.float64(0.1), 3)
        values = [np.float64(0.3 + 0.2 * i) for i in range(len(optimizer.slots))]
        swapped = []

        # Act
        with np.errstate(all="ignore"):  # a rule may take the root of what is negative in disorder
            expected = optimizer.update(np.float64(1), np.float64(0.25), *values, *scalars)
            for one, other in combinations(range(len(values)), 2):
                order = list(values)
                order[one], order[other] = order[other], order[one]
                swapped.append(optimizer.update(np.float64(1), np.float64(0.25), *order, *scalars))

        # Assert
        assert all(updated != expected for updated in swapped)

    def test_it_cannot_be_changed(self) -> None:
        """An optimizer is a value; live changes make another one."""
        # Arrange
        optimizer = self.optimizer()

        # Act
        changed = optimizer.with_values({"learning_rate": 0.5})

        # Assert
        with pytest.raises(dataclasses.FrozenInstanceError):
            optimizer.learning_rate = 0.5  # type: ignore[misc]
        assert changed.learning_rate == 0.5
        assert optimizer == self.optimizer()

    def test_unknown_arguments_are_refused(self) -> None:
        """A misspelled argument is an error, from Python and from a configuration."""
        # Arrange
        config = {"class_name": self.optimizer.__name__, "config": {"learning_rte": 0.1}}

        # Act
        with pytest.raises(InvalidArgument) as refusal:
            keras_config.deserialize(config)

        # Assert
        assert "learning_rte" in refusal.value.message
        assert "learning_rate" in refusal.value.message
        with pytest.raises(TypeError):
            self.optimizer(learning_rte=0.1)  # type: ignore[call-arg]

    def test_the_compiled_loop_equals_plain_python(self, variant: dict[str, Any]) -> None:
        """Numba changes no bit of parameters or slots, with all stages at work."""
        # Arrange
        optimizer = self.optimizer(**variant, **ALL_STAGES)

        # Act
        plain = train(Pipeline(LAYOUT, optimizer, compiled=False))
        compiled = train(Pipeline(LAYOUT, optimizer))

        # Assert
        assert compiled == plain

    def test_a_step_in_place_equals_one_into_another_buffer(self, variant: dict[str, Any]) -> None:
        """Where the parameters are written to changes no bit, and nothing is left unwritten."""
        # Arrange
        optimizer = self.optimizer(**variant, **ALL_STAGES)

        # Act
        in_place = train(Pipeline(LAYOUT, optimizer))
        elsewhere = train(Pipeline(LAYOUT, optimizer), in_place=False)

        # Assert
        assert elsewhere == in_place


class OptimizerContract(RuleContract):
    """The tests of an optimizer that Keras has too."""

    uses_powers: ClassVar[bool] = False

    @classmethod
    @cache
    def golden(cls) -> Any:
        """Return what Keras computed, recorded."""
        return json.loads((GOLDEN / f"{cls.optimizer.__name__.lower()}.json").read_text())

    def test_recorded_training_of_keras_is_met_without_keras(self, golden_case: Any) -> None:
        """Parameters and slots have the bytes that Keras's had after the same calls."""
        # Arrange
        optimizer = keras_config.deserialize(golden_case["optimizer"])
        assert isinstance(optimizer, Optimizer)
        same_powers = self.golden()["origin"]["powers"] == make_optimizers.probe()
        tolerance = NORM_TOLERANCE if optimizer.clips_by_norm else 0.0
        if self.uses_powers and not same_powers:
            tolerance = POWER_TOLERANCE

        # Act
        after = train(golden_pipeline(optimizer))

        # Assert
        assert after.keys() == golden_case["after"].keys()
        for name, text in golden_case["after"].items():
            expected = base64.b64decode(text)
            if tolerance:
                theirs, ours = numbers_of(expected), numbers_of(after[name])
                np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
            else:
                assert after[name] == expected, name

    def test_recorded_training_names_its_origin_and_covers_all_options(self) -> None:
        """The golden file tells its Keras version and generator; every option is in some case."""
        # Arrange
        origin, cases = self.golden()["origin"], self.golden()["cases"]
        defaults = self.optimizer().get_config()

        # Act
        varied = {
            name
            for case in cases
            for name, value in case["optimizer"]["config"].items()
            if value != defaults[name]
        }

        # Assert
        assert origin["keras"].startswith("3.")
        assert (Path(__file__).parents[3] / origin["generator"]).exists()
        common = {field.name for field in dataclasses.fields(Optimizer)} - {"name"}
        assert common <= varied

    @pytest.mark.oracle
    def test_arguments_have_the_names_order_and_defaults_of_keras(self) -> None:
        """A positional call means the same in Keras, and every keyword has Keras's default."""
        # Arrange
        keras = pytest.importorskip("keras")
        theirs = inspect.signature(getattr(keras.optimizers, self.optimizer.__name__)).parameters
        keras_defaults = {n: p.default for n, p in theirs.items() if n != "kwargs"}

        # Act
        ours = inspect.signature(self.optimizer).parameters
        positional = [n for n, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]

        # Assert
        assert {name: p.default for name, p in ours.items()} == keras_defaults
        assert positional == list(theirs)[: len(positional)]
