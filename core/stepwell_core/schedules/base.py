"""What all schedules share: the call, the config, and the checks of their arguments."""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from stepwell_core.errors import InvalidArgument

MODULE = "keras.optimizers.schedules"
MAX_LENGTH = 10_000  # numbers in one list: more do not fit a 256 KiB header, and a call reads all
MAX_NAME_CHARACTERS = 256  # a name is kept in every checkpoint and has no effect on the rate
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149  # the least float32 above 0; what is below may round to 0

ZERO, HALF, ONE, PI = np.float32(0), np.float32(0.5), np.float32(1), np.float32(np.pi)


@dataclass(frozen=True)
class LearningRateSchedule(ABC):
    """A learning rate that depends on the step and on nothing else.

    An instance is a value: it is immutable, compares by its arguments, and may be called from any
    thread. A new schedule is a file with a subclass, and one row in the registry of this package.
    """

    def __call__(self, step: int) -> np.float32:
        """Return the learning rate at a raw iteration, counted from 0.

        The bits are those of Keras's NumPy backend. Where the formula has no finite value, as with
        a negative `decay_rate` to a fractional power, this is infinity or NaN, as in Keras.
        """
        with np.errstate(all="ignore"):
            return np.float32(self._rate(step))

    @abstractmethod
    def _rate(self, step: int) -> np.float32:
        """Return the learning rate at `step`; floating-point errors are silenced here."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments by name, as given, in Keras's order."""
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}

    def serialize(self) -> dict[str, Any]:
        """Return what `keras.optimizers.schedules.serialize` returns for the same schedule."""
        return {
            "module": MODULE,
            "class_name": type(self).__name__,
            "config": self.get_config(),
            "registered_name": None,
        }

    def _settle(self, **checks: Callable[[str, Any], Any]) -> None:
        """Replace each named argument by what its check returns; only for `__post_init__`."""
        for name, check in checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))


def number(name: str, value: Any) -> int | float:
    """Return a number that is finite in float32, NumPy scalars as plain ones."""
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise InvalidArgument(f"Argument `{name}` must be a number. {received(name, value)}")
    if not -LARGEST <= plain <= LARGEST:
        raise InvalidArgument(
            f"Argument `{name}` must be finite in float32. {received(name, value)}"
        )
    return plain


def optional_number(name: str, value: Any) -> int | float | None:
    """Return a number as `number` does, or None."""
    return None if value is None else number(name, value)


def positive(name: str, value: Any) -> int | float:
    """Return a number above 0, also once it is rounded to float32: steps are divided by it."""
    plain = number(name, value)
    if plain < SMALLEST:
        raise InvalidArgument(f"Argument `{name}` must be > 0. {received(name, value)}")
    return plain


def numbers(name: str, value: Any) -> tuple[int | float, ...]:
    """Return a list or tuple of numbers as a tuple."""
    if not isinstance(value, list | tuple):
        raise InvalidArgument(
            f"Argument `{name}` must be a list of numbers. {received(name, value)}"
        )
    if len(value) > MAX_LENGTH:
        raise InvalidArgument(
            f"Argument `{name}` must hold at most {MAX_LENGTH} numbers. "
            f"Received: {name} of length {len(value)}"
        )
    return tuple(number(f"{name}[{index}]", item) for index, item in enumerate(value))


def flag(name: str, value: Any) -> bool:
    """Return a boolean; 0, 1 and strings are not taken."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidArgument(f"Argument `{name}` must be true or false. {received(name, value)}")
    return bool(value)


def label(name: str, value: Any) -> str | None:
    """Return a name that Keras takes as a scope, or None, which configs of Keras 2 carry."""
    if value is None:
        return None
    if not isinstance(value, str) or "/" in value or not value.isprintable():
        raise InvalidArgument(
            f"Argument `{name}` must be a printable string without `/`. {received(name, value)}"
        )
    if len(value) > MAX_NAME_CHARACTERS:
        raise InvalidArgument(
            f"Argument `{name}` must have at most {MAX_NAME_CHARACTERS} characters. "
            f"{received(name, value)}"
        )
    return value


def received(name: str, value: Any) -> str:
    """Return the words that end an error: the value as it came, cut to one short line."""
    try:
        shown = reprlib.repr(value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        shown = f"<{type(value).__name__} too long to show>"
    return f"Received: {name}={shown}"
