"""The numbers that a worker says with a push, taken as what people have them in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from stepwell_core.errors import InvalidArgument, shown

from stepwell.optimizers import Hyperparameters


def said_of(
    *,
    version: int | None,
    kind: str,
    weight: float,
    loss_scale: float | None,
    metrics: Mapping[str, float] | None,
) -> dict[str, Any]:
    """Return the part of a push's header that its caller decides; see `Worker.push`.

    Raises:
        InvalidArgument: Something is no number.
    """
    if not isinstance(metrics, Mapping | None):
        raise InvalidArgument(f"`metrics` are numbers by name. Received: {shown(metrics)}")
    scale = None if loss_scale is None else number("loss_scale", loss_scale)
    return {
        "version": version if version is None else _whole("version", version),
        "kind": kind,
        "weight": number("weight", weight),
        "loss_scale": None if kind != "gradient" else scale,
        "metrics": {name: number(f"metrics[{name!r}]", v) for name, v in (metrics or {}).items()},
    }


def values_of(hyperparameters: Hyperparameters) -> dict[str, float]:
    """Return plain numbers, calling what is callable.

    Raises:
        InvalidArgument: One is no number.
    """
    return {
        name: number(f"hyperparameters[{name!r}]", value() if callable(value) else value)
        for name, value in hyperparameters.items()
    }


def number(name: str, value: Any) -> float:
    """Return a number of Python, NumPy, torch or JAX as a float; text is none.

    Raises:
        InvalidArgument: It is not one number.
    """
    if not isinstance(value, str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # torch: more than one element
            pass
    raise InvalidArgument(f"`{name}` is a number. Received: {shown(value)}")


def _whole(name: str, value: Any) -> int:
    found = number(name, value)
    if not found.is_integer():
        raise InvalidArgument(f"`{name}` is a whole number. Received: {shown(value)}")
    return int(value) if isinstance(value, int | np.integer) else int(found)
