"""Requests as data: what to send, and how to read the answer. No I/O.

Those of a model itself are in `model_calls.py`, of its checkpoints in `checkpoint_calls.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode

from stepwell_core import wire
from stepwell_core.errors import InvalidArgument, InvalidInput, LayoutMismatch, shown
from stepwell_core.layout import Array, Layout

from stepwell.destinations import Destination
from stepwell.errors import UnexpectedAnswer
from stepwell.results import Parameters, PushResult
from stepwell.tensors import check_shape, common_dtype, gradients_of, in_travel_order


class Shares(Enum):
    """What a call exchanges that a server on the same host could be given in memory."""

    GRADIENTS = "gradients"
    PARAMETERS = "parameters"


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        method: Of HTTP.
        path: Below the server's URL.
        query: Names and values; a list repeats its name.
        header: Of a msgpack message; None if there is none.
        payload: The bytes behind the header, as views that are read while the call is under way.
        json: A JSON body instead.
        layout: Of the model whose tensors may come back.
        dtype: Of that payload.
        destination: Where it goes; None means new arrays.
        etag: Of what the caller has: if it is still so, nothing comes back.
        shares: What of it may be exchanged in shared memory instead.
        can_repeat: Whether it does no harm if the server gets it twice.
        timeout_s: For connecting and answering together, instead of the client's timeouts.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, Any] | None = None
    payload: tuple[memoryview, ...] = ()
    json: Mapping[str, Any] | None = None
    layout: Layout | None = None
    dtype: str = "native"
    destination: Destination | None = None
    etag: str | None = None
    shares: Shares | None = None
    can_repeat: bool = True
    timeout_s: float | None = None

    @cached_property
    def body(self) -> list[wire.Part]:
        """The message in parts, header and payload; empty if there is none.

        Raises:
            MalformedMessage: The header is larger than a server takes.
        """
        return [] if self.header is None else wire.encode(self.header, self.payload)

    @cached_property
    def target(self) -> str:
        """Path and query, quoted."""
        path = quote(self.path)
        query = urlencode(self.query, doseq=True, quote_via=quote)
        return f"{path}?{query}" if query else path


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        fields: The header of the message, or the JSON object.
        tensors: The payload; None if there was none.
        etag: Of `tensors`.
        is_current: Whether what the call's `etag` names is still so; then nothing else is said.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, Array] | None = None
    etag: str | None = None
    is_current: bool = False

    def __getitem__(self, name: str) -> Any:
        """Return a field.

        Raises:
            UnexpectedAnswer: It is not there.
        """
        return required(self.fields, name)


def required(values: Any, name: str) -> Any:
    """Return `values[name]`, for `values` from an answer.

    Raises:
        UnexpectedAnswer: There is no such field.
    """
    try:
        return values[name]
    except (KeyError, TypeError):
        raise UnexpectedAnswer(
            f"An answer of a Stepwell server has a field {name!r} here. Is the URL right, and does "
            "the server speak this protocol?"
        ) from None


def expected_payload(call: Call, header: Mapping[str, Any]) -> Layout | None:
    """Return which tensors are behind a header, or None if there are none.

    Raises:
        LayoutMismatch: The payload is of another layout than the call expects.
        InvalidInput: It is of tensors that the layout does not have.
        UnexpectedAnswer: It is of another protocol or dtype, or the header does not say of which
            tensors.
    """
    check_protocol(header)
    if "layout" not in header or call.layout is None:
        return None
    if header["layout"] != call.layout.hash:
        raise LayoutMismatch(
            "The model on the server has another layout now: it was deleted and created anew. Open "
            "it again",
            expected=call.layout.hash,
            received=shown(header["layout"]),
        )
    dtype = header.get("dtype", "native")
    if dtype != call.dtype:
        raise UnexpectedAnswer(
            f"Asked for {call.dtype} elements. Received: {shown(dtype)}; an older server sends "
            "parameters in their own dtypes alone"
        )
    names = header.get("tensors")
    if not isinstance(names, list | None):
        raise UnexpectedAnswer("The tensors of an answer are a list of names. Received: no list")
    return call.layout if names is None else call.layout.select(names)


def check_protocol(said: Mapping[str, Any]) -> None:
    """Refuse what a server says in another protocol; where it names none, the path does: `/v1`.

    Raises:
        UnexpectedAnswer: It is another one.
    """
    number = said.get("protocol", wire.PROTOCOL)
    if number != wire.PROTOCOL or isinstance(number, bool):
        raise UnexpectedAnswer(
            f"This client speaks protocol {wire.PROTOCOL}. Received an answer in protocol "
            f"{shown(number)}; install the client that belongs to the server"
        )


def model_path(name: str, *rest: str) -> str:
    """Return the path of a model or of something below it."""
    return "/".join(("/v1/models", name, *rest))


def pull(
    model: str,
    layout: Layout,
    names: Iterable[str] | None = None,
    slot: str | None = None,
    *,
    dtype: str = "native",
    **options: Any,
) -> Call:
    """Pull parameters or a slot.

    Args:
        model: Its name.
        layout: Of the model.
        names: Of the tensors; None means all.
        slot: Of the optimizer, instead of the parameters.
        dtype: Of what comes: "native", "float16" or "bfloat16".
        options: More of a `Call`; a `query` is added to.

    Raises:
        UnknownTensor: The model has no tensor of such a name.
        InvalidInput: `names` has none.
    """
    query: dict[str, Any] = {}
    selection = selected(layout, names)
    if names is not None:
        query["names"] = list(selection.names)
    if slot is not None:
        query["slot"] = slot
    if dtype != "native":
        query["dtype"] = dtype
    is_all = not query
    query |= options.pop("query", {})
    path = model_path(model, "parameters")
    shares = Shares.PARAMETERS if is_all else None
    return Call("GET", path, query, layout=layout, dtype=dtype, shares=shares, **options)


def selected(layout: Layout, names: Iterable[str] | None) -> Layout:
    """Return the layout of the named tensors; a single name is a name, and None means all.

    Raises:
        UnknownTensor: The model has no tensor of such a name.
        InvalidInput: `names` has none.
    """
    if names is None:
        return layout
    wanted = [names] if isinstance(names, str) else list(names)
    if not wanted:
        raise InvalidInput("A pull is of at least one tensor. Received: no names")
    return layout.select(wanted)


def parameters_of(answer: Answer) -> Parameters:
    """Return the parameters in an answer.

    Raises:
        UnexpectedAnswer: There are none.
    """
    if answer.tensors is None:
        raise UnexpectedAnswer("The answer to a pull has tensors behind its header. Received: none")
    return Parameters(
        answer.tensors,
        answer["version"],
        answer["incarnation"],
        answer.fields.get("loss_scale"),
        etag=answer.etag,
    )


def push(
    model: str,
    layout: Layout,
    gradients: Mapping[str, Any],
    header: Mapping[str, Any],
    *,
    pulls: bool,
    dtype: str | None = None,
    state: Mapping[str, Any] | None = None,
    destination: Destination | None = None,
) -> Call:
    """Push gradients; those that are None are left out.

    Args:
        model: Its name.
        layout: Of the model.
        gradients: By name; read until the call is answered, not copied.
        header: Who pushes, and what it says beside the gradients, such as that they are deltas.
        pulls: Whether the answer is to have the new parameters.
        state: Values of tensors that are not optimized; in their own dtypes.
        dtype: What gradients of uint16 hold the bits of: "bfloat16" or "float16".
        destination: Where the new parameters go.

    Raises:
        UnknownTensor, ShapeMismatch, DtypeMismatch: A gradient does not fit its parameter.
        InvalidInput: There is none at all.
        InvalidArgument: Their kind, which the header says, is not known.
    """
    kind = header.get("kind", "gradient")
    if kind not in wire.KINDS:
        raise InvalidArgument(f"A push is a {' or a '.join(wire.KINDS)}. Received: {shown(kind)}")
    arrays, dtypes = gradients_of(gradients, dtype)
    if not arrays:
        raise InvalidInput("A push has a gradient of at least one tensor. Received: none")
    values, value_dtypes = gradients_of(state or {})
    if both := arrays.keys() & values.keys():
        raise InvalidInput(
            f"A tensor has a gradient or a value. Received both: {shown(min(both))}",
            tensor=shown(min(both)),
        )
    arrays |= values
    dtypes |= value_dtypes
    selection = layout.select(arrays)
    for tensor in selection:
        what = "value" if tensor.name in values else "gradient"
        check_shape(arrays[tensor.name], tensor, what)
    said = {
        "protocol": wire.PROTOCOL,
        **header,
        "layout": layout.hash,
        "dtype": common_dtype(dtypes, selection),
    }
    if values:  # an older server knows no such field
        said["state"] = list(values)
    if selection is not layout:
        said["tensors"] = list(selection.names)
    return Call(
        "POST",
        model_path(model, "gradients"),
        query={"pull": "true"} if pulls else {},
        header=said,
        payload=in_travel_order(selection, arrays),
        layout=layout if pulls else None,
        shares=Shares.GRADIENTS,
        destination=destination,
    )


def result_of(answer: Answer) -> PushResult:
    """Return what became of a push; fields that this client does not know are left out.

    Raises:
        UnexpectedAnswer: The answer does not say.
    """
    if answer.tensors is None:
        return read_result(answer.fields)
    return replace(read_result(answer["result"]), parameters=parameters_of(answer))


def read_result(values: Any) -> PushResult:
    """Return a result from plain values; see `result_of`."""
    for name in ("outcome", "version", "parameters_version"):
        required(values, name)
    return PushResult(**{name: values[name] for name in _RESULT_FIELDS if name in values})


_RESULT_FIELDS = [field.name for field in fields(PushResult) if field.name != "parameters"]
