"""Plain values of strangers, taken as what they must be and as nothing else.

JSON and msgpack say of a number no more than that it is one, and a manifest or a record may come
from anybody. What is refused here would otherwise fail much later: at the next push, or never.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stepwell_core.errors import InvalidName
from stepwell_core.names import check_identifier

MOST = 2**63 - 1
"""The largest number that a counter may have; at a million pushes a second, 290,000 years."""


def integer(value: object, least: int = 0, most: int = MOST) -> int:
    """Return an integer of a range; no bool, no float that happens to be whole.

    Raises:
        ValueError: It is not one.
    """
    if type(value) is int and least <= value <= most:
        return value
    raise ValueError(f"an integer from {least} to {most} is wanted")


def boolean(value: object) -> bool:
    """Return True or False.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, bool):
        return value
    raise ValueError("true or false is wanted")


def number(value: object) -> float:
    """Return a number, which may be infinite or NaN.

    Raises:
        ValueError: It is not one, or an integer that no float64 is near to.
    """
    if isinstance(value, float) or (type(value) is int and abs(value) <= MOST):
        return float(value)
    raise ValueError("a number is wanted")


def positive(value: object) -> float:
    """Return a finite number > 0.

    Raises:
        ValueError: It is not one.
    """
    if 0 < number(value) < math.inf:
        return number(value)
    raise ValueError("a finite number > 0 is wanted")


def text(value: object, longest: int = 64) -> str:
    """Return a printable text that is neither empty nor longer than it may be.

    Raises:
        ValueError: It is not one.
    """
    if isinstance(value, str) and 0 < len(value) <= longest and value.isprintable():
        return value
    raise ValueError(f"a text of 1 to {longest} characters is wanted")


def identifier(value: object) -> str:
    """Return the name of a model or worker.

    Raises:
        ValueError: It is not one.
    """
    try:
        return check_identifier(value, "worker")
    except InvalidName:
        raise ValueError("a name of a model or worker is wanted") from None


def mapping(value: object, *keys: str) -> Mapping[str, Any]:
    """Return a map that has these keys and no others; any, if none are told.

    Raises:
        ValueError: It is not one.
    """
    if isinstance(value, Mapping) and (not keys or value.keys() == set(keys)):
        return value
    raise ValueError(f"a map is wanted, of: {', '.join(keys) or 'anything'}")


def sequence(value: object, longest: int) -> list[Any]:
    """Return a list that is not longer than it may be.

    Raises:
        ValueError: It is not one.
    """
    if isinstance(value, list | tuple) and len(value) <= longest:
        return list(value)
    raise ValueError(f"a list of at most {longest} is wanted")
