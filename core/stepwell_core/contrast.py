"""How two definitions of a model differ, in words: what is there, and what came.

They come as the plain values that `Definition.to_json` makes. Only what differs is named, and never
a whole list: a model may have thousands of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepwell_core.errors import shown

MOST = 4
"""Differences of a field that are named; more are none the clearer."""


def in_words(field: str, there: Any, received: Any) -> str:
    """Return a field that differs with the first of its differences.

    For example "optimizer (learning_rate is 0.001, received 0.01)".

    Args:
        field: Its name in the definition.
        there: Its value in the model that exists.
        received: The value that was asked for.
    """
    if field == "tensors":
        found = list(_of_tensors(there, received))
    else:
        found = list(_of_values("", there, received))
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return f"{field} ({'; '.join(found[:MOST])}{more})"


def _of_tensors(
    there: Sequence[Mapping[str, Any]], received: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    ours, theirs = ({t["name"]: _tensor(t) for t in tensors} for tensors in (there, received))
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            is_now = ours.get(name, "not there")
            yield f"{shown(name)} is {is_now}, received {theirs.get(name, 'without it')}"
    if ours == theirs:
        yield "the same ones are in another order"


def _tensor(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['dtype']} {shown(tuple(tensor['shape']))}"


def _of_values(name: str, there: Any, received: Any) -> Iterator[str]:
    """Yield differences; goes into what both have, as a schedule with other numbers."""
    if (
        isinstance(there, Mapping)
        and isinstance(received, Mapping)
        and _kind(there) == _kind(received)
    ):
        for key in {**there, **received}:
            if there.get(key) != received.get(key):
                inner = name if key == "config" else key
                yield from _of_values(inner, there.get(key), received.get(key))
    else:
        yield f"{name} is {_value(there)}, received {_value(received)}".lstrip()


def _kind(value: Mapping[str, Any]) -> Any:
    return value.get("class_name", value.get("mode"))


def _value(value: Any) -> str:
    if isinstance(value, Mapping) and _kind(value) is not None:
        return str(_kind(value))[:80]
    # Keras keeps hyperparameters in float32: 0.001 is 0.0010000000474974513.
    return f"{value:.7g}" if isinstance(value, float) else shown(value)
