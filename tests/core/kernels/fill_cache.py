"""Compile some kernels, or compare all with the same loops as plain Python; run by test_cache.py.

python fill_cache.py 0|1      compile every second configuration
python fill_cache.py check    print those whose compiled step differs from the plain one
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from stepwell_core import keras_config
from stepwell_core.layout import Layout
from stepwell_core.optimizers import Optimizer
from stepwell_core.pipeline import Gradient, Pipeline

RULES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("Adagrad", {}),
    ("Adam", {}),
]
OPTIONS: list[dict[str, Any]] = [{}, {"weight_decay": 0.1}, {"use_ema": True}, {"clipvalue": 0.5}]
OPTIONS += [{"clipnorm": 0.5}]
CONFIGURATIONS = [
    {"class_name": name, "config": {**rule, **option}} for name, rule in RULES for option in OPTIONS
]


def stepped(configuration: dict[str, Any], *, compiled: bool) -> bytes:
    """Return the parameters' bytes after two steps."""
    rng = np.random.default_rng(0)
    parameters = {"w": rng.standard_normal(16).astype(np.float32)}
    gradient = {"w": rng.standard_normal(16).astype(np.float32)}
    optimizer = keras_config.deserialize(configuration)
    assert isinstance(optimizer, Optimizer)
    layout = Layout.of(parameters)
    pipeline = Pipeline(layout, optimizer, compiled=compiled)
    weights, slots = layout.flatten(parameters), pipeline.new_slots()
    for iterations in range(2):
        pushed = Gradient(layout, layout.flatten(gradient))
        pipeline.apply(weights, weights, slots, pushed, pipeline.scalars(iterations))
    return weights["float32"].tobytes()


if __name__ == "__main__":
    if sys.argv[1] == "check":
        for wanted in CONFIGURATIONS:
            if stepped(wanted, compiled=True) != stepped(wanted, compiled=False):
                print(wanted)
    else:
        for wanted in CONFIGURATIONS[int(sys.argv[1]) :: 2]:
            stepped(wanted, compiled=True)
