"""Drives a flow by hand: one scripted answer or error for each call, and no network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack
from stepwell.calls import Answer, Call
from stepwell.retry import Sleep


class Script:
    """What a server would say to each call of a flow, in order.

    Attributes:
        calls: What the flow asked for.
        pauses_s: How long it waited in between.
    """

    def __init__(self, *answers: Answer | BaseException | dict[str, Any]) -> None:
        self._answers = list(answers)
        self.calls: list[Call] = []
        self.pauses_s: list[float] = []

    def run(self, flow: Any) -> Any:
        """Drive `flow` to its end; every answer must be used up."""
        try:
            step = next(flow)
            while True:
                if isinstance(step, Sleep):
                    self.pauses_s.append(step.seconds)
                    step = flow.send(Answer({}))
                    continue
                self.calls.append(step)
                assert self._answers, f"nothing is scripted for {step.method} {step.path}"
                answer = self._answers.pop(0)
                if isinstance(answer, BaseException):
                    step = flow.throw(answer)
                else:
                    step = flow.send(answer if isinstance(answer, Answer) else Answer(answer))
        except StopIteration as stop:
            assert not self._answers, f"the flow ended before {self._answers}"
            return stop.value
        finally:
            flow.close()

    @property
    def asked(self) -> list[str]:
        """Method and path of each call, the model's prefix left out."""
        return [
            f"{call.method} {call.path.removeprefix('/v1/models/digits')}" for call in self.calls
        ]

    def header(self, index: int) -> dict[str, Any]:
        """Return the msgpack header of the body of a call."""
        return header_of(self.calls[index])


def header_of(call: Call) -> dict[str, Any]:
    """Return the msgpack header of a call's body."""
    return _objects_of(call)[0]


def payload_of(call: Call) -> bytes:
    """Return the payload behind the header."""
    return b"".join(_objects_of(call)[1:])


def _objects_of(call: Call) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(b"".join(call.body))
    return list(unpacker)


def opened(epoch: int = 1, previous: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return the answer to the opening of a session."""
    return {
        "epoch": epoch, "incarnation": "one", "loss_scale": None, "previous": previous, **fields
    }  # fmt: skip


def result(outcome: str = "applied", version: int = 1, **fields: Any) -> dict[str, Any]:
    """Return the answer to a push."""
    return {"outcome": outcome, "version": version, "parameters_version": version, **fields}


def names(values: Iterable[Any]) -> list[str]:
    """Return the names of named things."""
    return [value.name for value in values]
