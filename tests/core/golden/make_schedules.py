"""Write `schedules.json` again: values of Keras's own schedules on its NumPy backend.

    KERAS_BACKEND=numpy python tests/core/golden/make_schedules.py

It imports Keras (with JAX and SciPy, which that backend needs) and nothing of Stepwell.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "numpy"

import keras

# No step is a restart or the end of a period: there a rounding of log that differs from one CPU to
# another would change the value by more than a rounding.
STEPS = [0, 1, 2, 3, 10, 49, 101, 249, 499, 999, 1001, 1777, 2999, 3000]

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ExponentialDecay", {"initial_learning_rate": 0.1, "decay_steps": 700, "decay_rate": 0.96}),
    (
        "ExponentialDecay",
        {"initial_learning_rate": 0.5, "decay_steps": 90, "decay_rate": 0.7, "staircase": True},
    ),
    (
        "PiecewiseConstantDecay",
        {"boundaries": [3, 249, 1000], "values": [0.1, 0.05, 0.01, 0.001]},
    ),
    ("PolynomialDecay", {"initial_learning_rate": 0.1, "decay_steps": 2000, "power": 0.5}),
    (
        "PolynomialDecay",
        {
            "initial_learning_rate": 0.3,
            "decay_steps": 440,
            "end_learning_rate": 0.02,
            "power": 2.0,
            "cycle": True,
        },
    ),
    ("InverseTimeDecay", {"initial_learning_rate": 0.1, "decay_steps": 37, "decay_rate": 0.5}),
    (
        "InverseTimeDecay",
        {"initial_learning_rate": 0.2, "decay_steps": 10.5, "decay_rate": 1.5, "staircase": True},
    ),
    ("CosineDecay", {"initial_learning_rate": 0.1, "decay_steps": 1500, "alpha": 0.1}),
    (
        "CosineDecay",
        {
            "initial_learning_rate": 0.001,
            "decay_steps": 2000,
            "warmup_target": 0.4,
            "warmup_steps": 300,
        },
    ),
    ("CosineDecayRestarts", {"initial_learning_rate": 0.1, "first_decay_steps": 70}),
    (
        "CosineDecayRestarts",
        {
            "initial_learning_rate": 0.1,
            "first_decay_steps": 130,
            "t_mul": 1.0,
            "m_mul": 0.9,
            "alpha": 0.01,
        },
    ),
]


def main() -> None:
    """Write the file beside this program, one case on a line."""
    origin = {
        "source": "keras.optimizers.schedules on the NumPy backend, step = an int32 keras.Variable",
        "keras": version("keras"),
        "numpy": version("numpy"),
        "generator": "tests/core/golden/make_schedules.py",
        "values": "float32, written as the float64 of the same value",
    }
    iterations = keras.Variable(0, dtype="int", trainable=False)
    cases = [json.dumps(make_case(*case, iterations)) for case in CASES]
    text = '{"origin": %s,\n "steps": %s,\n "cases": [\n  %s\n]}\n'
    filled = text % (json.dumps(origin, indent=1), json.dumps(STEPS), ",\n  ".join(cases))
    Path(__file__).with_name("schedules.json").write_text(filled)


def make_case(class_name: str, arguments: dict[str, Any], iterations: Any) -> dict[str, Any]:
    """Return Keras's JSON of one schedule and its values at `STEPS`."""
    schedule = getattr(keras.optimizers.schedules, class_name)(**arguments)
    values = []
    for step in STEPS:
        iterations.assign(step)
        values.append(float(schedule(iterations)))
    return {"schedule": keras.optimizers.schedules.serialize(schedule), "values": values}


if __name__ == "__main__":
    main()
