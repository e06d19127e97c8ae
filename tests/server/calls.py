"""What a stranger with an HTTP client and a msgpack library does, written without Stepwell's own.

Only the layout's hash and order are taken from core.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import httpx
import msgpack
import numpy as np
from stepwell_core.layout import Layout, Tensor

MSGPACK = "application/msgpack"
PROBLEM = "application/problem+json"
LAYOUT = Layout([Tensor("dense/kernel", (3, 4), "float32"), Tensor("bias", (4,), "float64")])
SGD = {"class_name": "SGD", "config": {"learning_rate": 0.5}}
MOMENTUM = {"class_name": "SGD", "config": {"learning_rate": 0.5, "momentum": 0.9}}

Arrays = Mapping[str, np.ndarray]

_numbers = itertools.count()


def new_name() -> str:
    """Return a name that no other test uses."""
    return f"model-{next(_numbers)}"


def packed(header: Mapping[str, Any], *bins: bytes) -> bytes:
    """Return a msgpack stream."""
    return msgpack.packb(dict(header)) + b"".join(msgpack.packb(piece) for piece in bins)


def unpacked(body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and payload of a msgpack stream."""
    unpacker = msgpack.Unpacker(max_bin_len=1 << 31, max_buffer_size=1 << 31)
    unpacker.feed(body)
    header, *bins = unpacker
    return header, b"".join(bins)


def payload(arrays: Arrays, layout: Layout = LAYOUT) -> bytes:
    """Return the bytes of some of a layout's tensors in the order of travel."""
    return b"".join(arrays[name].tobytes() for name in layout.segments if name in arrays)


def arrays_of(payload: bytes, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    """Return the tensors of a whole payload."""
    arrays, start = {}, 0
    for name, segment in layout.segments.items():
        dtype = np.dtype(segment.tensor.dtype)
        part = payload[start : start + segment.tensor.size * dtype.itemsize]
        arrays[name] = np.frombuffer(part, dtype).reshape(segment.tensor.shape)
        start += len(part)
    assert start == len(payload)
    return arrays


def filled(value: float, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    """Return tensors whose elements are all `value`."""
    return {t.name: np.full(t.shape, value, t.dtype) for t in layout.tensors}


def definition(name: str, layout: Layout = LAYOUT, **fields: Any) -> dict[str, Any]:
    """Return the fields that create a model; plain SGD unless told otherwise."""
    return {"name": name, "tensors": layout.to_json(), "optimizer": SGD, **fields}


def create(
    http: httpx.Client,
    name: str | None = None,
    values: Arrays | None = None,
    layout: Layout = LAYOUT,
    **fields: Any,
) -> str:
    """Create a model, all ones unless told otherwise; returns its path."""
    name = name or new_name()
    header = definition(name, layout, **fields)
    body = packed(header, payload(values or filled(1.0, layout), layout))
    answer = http.post("/v1/models", content=body, headers={"Content-Type": MSGPACK})
    assert answer.status_code == 201, answer.text
    return f"/v1/models/{name}"


def pull(http: httpx.Client, path: str, layout: Layout = LAYOUT) -> dict[str, np.ndarray]:
    """Return the parameters of a model."""
    answer = http.get(f"{path}/parameters", headers={"Accept": MSGPACK})
    assert answer.status_code == 200, answer.text
    return arrays_of(unpacked(answer.content)[1], layout)


def described(http: httpx.Client, path: str) -> dict[str, Any]:
    """Return what a model says of itself, but for how it is kept on the disk and who is there."""
    fields = http.get(path).json()
    del fields["durability"], fields["open_sessions"]
    return fields


def workers(http: httpx.Client, path: str) -> list[dict[str, Any]]:
    """Return the newest session of every worker, without what changes by itself."""
    lasting = ("worker", "epoch", "is_open", "last_sequence")
    listed = http.get(f"{path}/workers").json()["workers"]
    return [{name: session[name] for name in lasting} for session in listed]


def image(http: httpx.Client, path: str) -> tuple[Any, ...]:
    """Return all that can be seen of a model, to be compared."""
    slots = http.get(path).json()["slots"]
    return (
        described(http, path),
        workers(http, path),
        http.get(f"{path}/optimizer").json(),
        http.get(f"{path}/parameters", headers={"Accept": MSGPACK}).content,
        [
            http.get(
                f"{path}/parameters", params={"slot": slot}, headers={"Accept": MSGPACK}
            ).content
            for slot in slots
        ],
    )


class Worker:
    """A session, and the sequence number of its next push."""

    def __init__(
        self, http: httpx.Client, path: str, name: str = "w0", layout: Layout = LAYOUT
    ) -> None:
        self.http, self.path, self.name, self.layout = http, path, name, layout
        answer = http.post(f"{path}/workers", json={"worker": name})
        assert answer.status_code == 201, answer.text
        self.opened = answer.json()
        self.epoch, self.incarnation = self.opened["epoch"], self.opened["incarnation"]
        self.sequence = 0

    def header(self, **fields: Any) -> dict[str, Any]:
        return {
            "worker": self.name,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "incarnation": self.incarnation,
            "layout": self.layout.hash,
            **fields,
        }

    def send(
        self,
        body: bytes,
        accept: str = "application/json",
        content_type: str = MSGPACK,
        query: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        """Send the bytes of a push, whatever they are."""
        headers = {"Content-Type": content_type, "Accept": accept}
        return self.http.post(
            f"{self.path}/gradients", content=body, headers=headers, params=query or {}
        )

    def try_push(self, gradients: Arrays | float = 1.0, **fields: Any) -> httpx.Response:
        """Send the push that is due; the same again until `sequence` is changed."""
        if not isinstance(gradients, Mapping):
            gradients = filled(gradients, self.layout)
        return self.send(packed(self.header(**fields), payload(gradients, self.layout)))

    def push(self, gradients: Arrays | float = 1.0, **fields: Any) -> dict[str, Any]:
        """Make the next push; returns its result."""
        answer = self.try_push(gradients, **fields)
        assert answer.status_code == 200, answer.text
        self.sequence += 1
        return answer.json()

    def heartbeat(self) -> httpx.Response:
        """Give a sign of life."""
        body = {"epoch": self.epoch, "incarnation": self.incarnation}
        return self.http.post(f"{self.path}/workers/{self.name}/heartbeat", json=body)


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is the problem document it should be, and return it."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == PROBLEM
    document = answer.json()
    assert document["status"] == status
    assert document["type"] == f"urn:stepwell:problem:{code}"
    assert document["title"]
    assert document["detail"]
    return document
