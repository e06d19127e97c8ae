"""Pulls: of what, as which dtype, into what, and how long to wait for a version."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from stepwell_core.errors import InvalidArgument, shown
from stepwell_core.layout import Array, Layout

from stepwell import calls
from stepwell.destinations import CallersArrays, Destination, Into, NewArrays, Pieces
from stepwell.pull_buffers import PullBuffers
from stepwell.results import Parameters
from stepwell.retry import Flow, Patience, repeatedly
from stepwell.tensors import HALF_DTYPES

WAIT_S = 20.0
"""The longest that one request waits at the server; a longer wait is several requests."""


class PullOptions(TypedDict, total=False):
    """How a pull comes.

    Attributes:
        dtype: "float16" or "bfloat16": rounded by the server, half the bytes. bfloat16 arrays are
            of `ml_dtypes.bfloat16` if that package is installed, else its bits as uint16.
        cached: What an earlier pull returned. If that is still what the server would send, this
            very object is returned and nothing is sent, or written to `out` or `into`.
        min_version: Wait until the parameters are of this version or a later one. With `cached`,
            and for a worker, a version of the same history: else `StaleIncarnation`.
        wait_s: How long to wait for `min_version` at most, in seconds; then comes what there is,
            so look at `.version`. Default 20.
        out: Arrays to write to, by name: exactly the tensors that are pulled, in their shapes and
            the dtype that comes, writeable, in C order. The bytes go from the socket into them.
            After an error their content is undefined.
        into: Called with name, index of the first element, and a 1-D array of elements, in order,
            for models that are larger than memory: all float32 tensors, then all float64 ones. A
            piece has at most 16 MiB; its array is used again when the callback returns. What it
            raises ends the pull. Once it was called, a connection that breaks is not tried again
            but raised, since another answer might be of another version. With an asyncio client it
            is a plain function too, and runs on the event loop. The parameters returned have no
            arrays.
    """

    dtype: str
    cached: Parameters | None
    min_version: int | None
    wait_s: float
    out: Mapping[str, Array] | None
    into: Into | None


@dataclass(frozen=True)
class Pulls:
    """Pulls of one model.

    Attributes:
        model: Its name.
        layout: Its tensors.
        patience: How long a call is repeated.
        buffers: What new arrays are made of.
    """

    model: str
    layout: Layout
    patience: Patience
    buffers: PullBuffers = field(default_factory=PullBuffers)

    def pull(
        self,
        names: Iterable[str] | None = None,
        slot: str | None = None,
        *,
        incarnation: str | None = None,
        dtype: str = "native",
        cached: Parameters | None = None,
        min_version: int | None = None,
        wait_s: float = WAIT_S,
        out: Mapping[str, Array] | None = None,
        into: Into | None = None,
        destination: Destination | None = None,
    ) -> Flow[Parameters]:
        """Pull parameters or a slot.

        Args:
            names: Of the tensors; None means all.
            slot: Of the optimizer, instead of the parameters.
            incarnation: Of the history that `min_version` is of.
            destination: Instead of `out` and `into`.
            dtype, cached, min_version, wait_s, out, into: See `PullOptions`.
        """
        _check(dtype, cached, min_version, wait_s)
        selection = calls.selected(self.layout, names)
        chosen_destination = destination or self._destination(selection, dtype, out, into)
        options: dict[str, Any] = {"destination": chosen_destination}
        if cached is not None:
            incarnation, options["etag"] = incarnation or cached.incarnation, cached.etag
        if min_version is not None:
            query = {"min_version": min_version, "incarnation": incarnation}
            options["query"] = yield from self._wait(query, wait_s)
        chosen = None if selection is self.layout else selection.names
        call = calls.pull(self.model, self.layout, chosen, slot, dtype=dtype, **options)
        answer = yield from repeatedly(call, self.patience)
        if answer.is_current and cached is not None:
            return cached
        return calls.parameters_of(answer)

    def destination(self) -> Destination:
        """Return where the whole model's parameters go by default."""
        return NewArrays(buffers=self.buffers, whole=self.layout)

    def _destination(
        self,
        selection: Layout,
        dtype: str,
        out: Mapping[str, Array] | None,
        into: Into | None,
    ) -> Destination:
        if out is not None and into is not None:
            raise InvalidArgument("A pull goes to `out` or to `into`. Received: both")
        if out is not None:
            return CallersArrays(selection, out, dtype)
        if into is not None:
            return Pieces(into, dtype)
        return NewArrays(dtype, self.buffers, self.layout)

    def _wait(self, query: Mapping[str, Any], wait_s: float) -> Flow[dict[str, Any]]:
        """Wait all but the last request's time, and return what that one says.

        The requests in between ask for the smallest tensor alone, since after its time the server
        answers with what there is.
        """
        said = {name: value for name, value in query.items() if value is not None}
        # A server is given a third of the read timeout to answer when the wait is over.
        longest_s = min(WAIT_S, self.patience.timeout.read_s * 2 / 3)
        end = time.monotonic() + wait_s
        smallest = min(self.layout, key=lambda tensor: tensor.size).name
        while (left_s := end - time.monotonic()) > longest_s:
            waiting = {**said, "wait_s": longest_s}
            call = calls.pull(self.model, self.layout, smallest, query=waiting)
            answer = yield from repeatedly(call, self.patience)
            if calls.parameters_of(answer).version >= query["min_version"]:
                left_s = 0.0
                break
        return {**said, "wait_s": round(max(left_s, 0.0), 3)}


def _check(dtype: str, cached: Parameters | None, min_version: int | None, wait_s: float) -> None:
    """Raise unless the options can be what they say."""
    if dtype not in ("native", *HALF_DTYPES):
        raise InvalidArgument(
            f"Parameters come as native, {' or '.join(HALF_DTYPES)}. Received: dtype {shown(dtype)}"
        )
    if not isinstance(cached, Parameters | None):
        raise InvalidArgument(
            f"`cached` is what an earlier pull returned. Received: {type(cached).__name__}"
        )
    is_version = isinstance(min_version, int) and not isinstance(min_version, bool)
    if min_version is not None and not (is_version and min_version >= 0):
        raise InvalidArgument(f"`min_version` is a version, >= 0. Received: {shown(min_version)}")
    is_time = isinstance(wait_s, int | float) and not isinstance(wait_s, bool)
    if not (is_time and math.isfinite(wait_s) and wait_s >= 0):
        raise InvalidArgument(f"`wait_s` is in seconds, >= 0. Received: {shown(wait_s)}")
