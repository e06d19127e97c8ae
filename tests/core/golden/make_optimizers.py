"""Write `sgd.json`, `adagrad.json` and `adam.json` again: Keras's own training, to the bit.

    KERAS_BACKEND=numpy python -m tests.core.golden.make_optimizers

Each case is a configuration of Keras, trained for `STEPS` calls on five small tensors with
gradients that integers alone determine; the file has the bytes of parameters and slots afterwards.
It imports Keras (with JAX and SciPy, which its NumPy backend needs) and nothing of Stepwell.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
STEPS = 7
TENSORS: dict[str, tuple[tuple[int, ...], str]] = {
    "dense/kernel": ((5, 3), "float32"),
    "dense/bias": ((3,), "float32"),
    "scale": ((), "float32"),
    "nothing": ((0, 2), "float32"),
    "wide/kernel": ((4,), "float64"),
}
EXCLUDED = ["bias"]
MISSING_AT = {2: {"dense/bias"}, 4: {"dense/kernel", "wide/kernel"}}

PIECEWISE = {
    "module": "keras.optimizers.schedules",
    "class_name": "PiecewiseConstantDecay",
    "config": {"boundaries": [1, 4], "values": [0.1, 0.03, 0.01], "name": "PiecewiseConstant"},
    "registered_name": None,
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"learning_rate": PIECEWISE, "weight_decay": 0.004},
    {"clipnorm": 0.5},
    {"global_clipnorm": 0.5},
    {"clipvalue": 0.01, "weight_decay": 0.1},
    {"use_ema": True, "ema_momentum": 0.9},
    {"use_ema": True, "ema_overwrite_frequency": 3},
    {"loss_scale_factor": 128.0},
    {"gradient_accumulation_steps": 2, "learning_rate": PIECEWISE},
    {"gradient_accumulation_steps": 3, "use_ema": True, "ema_overwrite_frequency": 2},
    {
        "gradient_accumulation_steps": 2,
        "weight_decay": 0.1,
        "clipvalue": 0.5,
        "loss_scale_factor": 3.0,
        "use_ema": True,
        "ema_momentum": 0.5,
    },
]
RULES: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {"learning_rate": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
    ],
    "Adagrad": [{"learning_rate": 0.1}, {"initial_accumulator_value": 0.0, "epsilon": 1e-3}],
    "Adam": [{"learning_rate": 0.1}, {"amsgrad": True, "beta_1": 0.5, "epsilon": 1e-3}],
}


def cases_of(class_name: str) -> Iterator[dict[str, Any]]:
    """Yield configurations: every option once, with the variants of the rule in turn."""
    rules = RULES[class_name]
    for position, options in enumerate(OPTIONS + rules):
        yield {
            "class_name": class_name,
            "config": {**rules[position % len(rules)], **options, "name": class_name.lower()},
        }


def numbers(seed: int, size: int) -> np.ndarray:
    """Return numbers between -8 and 8 of many magnitudes, the same on every machine."""
    words = [(seed * 7919 + i + 1) * 2654435761 % 2**32 for i in range(size)]
    return np.array([(w / 2**31 - 1) * 2.0 ** (w % 13 - 9) for w in words])


def parameters() -> dict[str, np.ndarray]:
    """Return the parameters before the first step."""
    return {
        name: numbers(position, int(np.prod(shape))).astype(dtype).reshape(shape)
        for position, (name, (shape, dtype)) in enumerate(TENSORS.items())
    }


def gradients(step: int) -> dict[str, np.ndarray]:
    """Return the gradients of a step, without those that are missing."""
    return {
        name: numbers(100 + 10 * step + position, int(np.prod(shape))).astype(dtype).reshape(shape)
        for position, (name, (shape, dtype)) in enumerate(TENSORS.items())
        if name not in MISSING_AT.get(step, ())
    }


def probe() -> str:
    """Return the bits of some powers; where a CPU has others, Adam's alpha is another one."""
    steps = np.arange(1, STEPS + 1)
    powers = [
        np.power(dtype(beta), dtype(t)).tobytes()
        for dtype in (np.float32, np.float64)
        for beta in (0.9, 0.5, 0.999)
        for t in steps
    ]
    return encoded(b"".join(powers))


def encoded(data: bytes) -> str:
    """Return bytes as text."""
    return base64.b64encode(data).decode()


def trained(config: dict[str, Any]) -> dict[str, Any]:
    """Return Keras's parameters and slots after `STEPS` calls, tensors end to end in order."""
    from tests.core.keras_oracle import KerasModel

    model = KerasModel(parameters(), config)
    model.optimizer.exclude_from_weight_decay(var_names=EXCLUDED)
    for step in range(STEPS):
        model.apply(gradients(step))
    arrays = {"parameters": model.parameters, **model.slots()}
    return {
        name: encoded(b"".join(array.tobytes() for array in tensors.values()))
        for name, tensors in arrays.items()
    }


def main() -> None:
    """Write one file for each optimizer, one case on a line."""
    import keras

    origin = {
        "source": "keras.optimizers on the NumPy backend",
        "keras": version("keras"),
        "numpy": version("numpy"),
        "generator": "tests/core/golden/make_optimizers.py",
        "values": "little-endian bytes of all tensors end to end, base64",
        "powers": probe(),
    }
    for class_name in RULES:
        lines = []
        for config in cases_of(class_name):
            made = keras.optimizers.serialize(keras.optimizers.deserialize(dict(config)))
            lines.append(json.dumps({"optimizer": made, "after": trained(config)}))
        text = '{"origin": %s,\n "cases": [\n  %s\n]}\n'
        filled = text % (json.dumps(origin, indent=1), ",\n  ".join(lines))
        (FOLDER / f"{class_name.lower()}.json").write_text(filled)


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    main()
