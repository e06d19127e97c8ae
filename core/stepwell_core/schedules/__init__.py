"""Learning-rate schedules: the six of Keras 3, with its arguments, its JSON and its values.

A schedule is a frozen dataclass that maps a raw iteration (0, 1, 2, ...; micro-steps of gradient
accumulation count) to a learning rate. Each lives in a file of its own, with its formula:

    ExponentialDecay         initial * decay_rate ** (step / decay_steps)
    PiecewiseConstantDecay   a value for each range of steps
    PolynomialDecay          from initial to end along (1 - step / decay_steps) ** power
    InverseTimeDecay         initial / (1 + decay_rate * step / decay_steps)
    CosineDecay              half a cosine, after a linear warm-up if asked for
    CosineDecayRestarts      the same again and again, longer each time

Source: Keras 3 (3.15.1 was read), `keras/src/optimizers/schedules/learning_rate_schedule.py`.

The dtype rule: every number is rounded to float32 first, and every operation is one float32
operation in Keras's order, so the values equal those of Keras's NumPy backend (floatx float32) bit
for bit. Powers are `np.power` and never `**`: NumPy may compute the two differently.

What differs: an integer where a float is meant is taken as a float, where Keras computes in int32
(`initial_learning_rate=1` falls to 0 there). Arguments are checked for type and size when they are
given, since configs come from strangers. A schedule of one's own is code, and stays in the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from stepwell_core.errors import InvalidArgument
from stepwell_core.schedules.base import MODULE, LearningRateSchedule, received
from stepwell_core.schedules.cosine_decay import CosineDecay
from stepwell_core.schedules.cosine_decay_restarts import CosineDecayRestarts
from stepwell_core.schedules.exponential_decay import ExponentialDecay
from stepwell_core.schedules.inverse_time_decay import InverseTimeDecay
from stepwell_core.schedules.piecewise_constant_decay import PiecewiseConstantDecay
from stepwell_core.schedules.polynomial_decay import PolynomialDecay

__all__ = [
    "SCHEDULES",
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "deserialize",
]

SCHEDULES: tuple[type[LearningRateSchedule], ...] = (
    ExponentialDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
    InverseTimeDecay,
    CosineDecay,
    CosineDecayRestarts,
)


def deserialize(config: Mapping[str, Any]) -> LearningRateSchedule:
    """Return the schedule that a config of Keras describes.

    Args:
        config: What `keras.optimizers.schedules.serialize` gives, or only `class_name` and
            `config` of it. Class names compare case-insensitively; other keys are ignored.

    Raises:
        InvalidArgument: The config is of another form, names another class, or has arguments that
            the class does not know, lacks or refuses.
    """
    if not isinstance(config, Mapping):
        raise InvalidArgument(
            "A schedule's config must be a map with the keys class_name and config. "
            f"{received('config', config)}"
        )
    schedule = _schedule_class(config)
    arguments = config.get("config")
    arguments = {} if arguments is None else arguments
    _check_arguments(schedule, arguments)
    return schedule(**arguments)


def _schedule_class(config: Mapping[str, Any]) -> type[LearningRateSchedule]:
    class_name = config.get("class_name")
    known = {schedule.__name__.lower(): schedule for schedule in SCHEDULES}
    if not isinstance(class_name, str) or class_name.lower() not in known:
        raise InvalidArgument(
            f"`class_name` must be one of {', '.join(s.__name__ for s in SCHEDULES)}; a schedule "
            f"of your own is passed as a callable. {received('class_name', class_name)}"
        )
    module, registered_name = config.get("module", MODULE), config.get("registered_name")
    if module != MODULE:
        raise InvalidArgument(f"`module` must be {MODULE}. {received('module', module)}")
    if registered_name not in (None, class_name):
        raise InvalidArgument(
            "`registered_name` must be null: only Keras's own schedules are known. "
            f"{received('registered_name', registered_name)}"
        )
    return known[class_name.lower()]


def _check_arguments(schedule: type[LearningRateSchedule], arguments: Any) -> None:
    if not isinstance(arguments, Mapping):
        raise InvalidArgument(
            f"The config of {schedule.__name__} must be a map of arguments. "
            f"{received('config', arguments)}"
        )
    known = [field.name for field in fields(schedule)]
    unknown = [key for key in arguments if key not in known]
    if unknown:
        raise InvalidArgument(
            f"{schedule.__name__} takes {', '.join(known)}. "
            f"{received('unknown arguments', unknown)}"
        )
    needed = [field.name for field in fields(schedule) if field.default is MISSING]
    missing = [name for name in needed if name not in arguments]
    if missing:
        raise InvalidArgument(
            f"{schedule.__name__} needs {', '.join(needed)}. Missing: {', '.join(missing)}. "
            f"{received('arguments', list(arguments))}"
        )
