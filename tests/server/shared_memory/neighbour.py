"""What a process on the server's host does to share memory, written without Stepwell's own client.

It speaks HTTP over the Unix socket by hand, since no HTTP library takes file descriptors.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from tests import servers
from tests.server import calls

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass
class Answer:
    """One answer, and the descriptor that came with it."""

    status: int
    fields: dict[str, Any]
    descriptor: int | None


class Neighbour:
    """One connection over the server's Unix socket."""

    def __init__(self, path: str, token: str | None = None) -> None:
        self.wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.wire.settimeout(servers.DEADLINE_S)
        self._path: str | None = path  # until it is connected
        self._token = token
        self.maps: dict[int, np.ndarray] = {}

    def ask(
        self, method: str, path: str, body: bytes = b"", media_type: str = calls.MSGPACK
    ) -> Answer:
        """Send a request and return its answer."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Accept: application/json"]
        if self._token:
            lines.append(f"Authorization: Bearer {self._token}")
        if body:
            lines += [f"Content-Type: {media_type}", f"Content-Length: {len(body)}"]
        if self._path is not None:  # not before: a server waits for 5 s for the first header
            self.wire.connect(self._path)
            self._path = None
        self.wire.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return self.read()

    def read(self) -> Answer:
        """Return the next answer."""
        descriptor, data = None, b""
        while b"\r\n\r\n" not in data.removeprefix(INTERIM):
            data += self._receive()
            descriptor = self._descriptors.pop() if self._descriptors else descriptor
        head, _, body = data.removeprefix(INTERIM).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        while len(body) < int(headers.get("content-length", 0)):
            body += self._receive()
        return Answer(int(status.split()[1]), json.loads(body or b"{}"), descriptor)

    _descriptors: list[int]

    def _receive(self) -> bytes:
        data, ancillary, _, _ = self.wire.recvmsg(65536, socket.CMSG_SPACE(4))
        self._descriptors = []
        for _, _, packed in ancillary:
            received = array.array("i")
            received.frombytes(packed)
            self._descriptors += received
        assert data, "the connection ended"
        return data

    def take_region(self, model: str) -> np.ndarray:
        """Take a region for gradients; returns its bytes, writable."""
        answer = self.ask("POST", f"{model}/memory/gradients")
        assert answer.status == 201, answer.fields
        assert answer.descriptor is not None
        return mapped(answer.descriptor, answer.fields["bytes"])

    def hold(self, model: str) -> tuple[dict[str, Any], np.ndarray]:
        """Hold the parameters; returns what the server says and the region's bytes."""
        known = "&".join(f"known={serial}" for serial in self.maps)
        answer = self.ask("POST", f"{model}/memory/parameters?{known}")
        assert answer.status == 201, answer.fields
        serial = answer.fields["region"]
        assert (answer.descriptor is None) == (serial in self.maps)
        if answer.descriptor is not None:
            self.maps[serial] = mapped(
                answer.descriptor, answer.fields["bytes"], access=mmap.PROT_READ
            )
        return answer.fields, self.maps[serial]

    def let_go(self, model: str, held: dict[str, Any]) -> None:
        """Let go of what `hold` returned."""
        assert self.ask("DELETE", f"{model}/memory/parameters/{held['held']}").status == 204

    def push(self, worker: calls.Worker, **fields: Any) -> Answer:
        """Push what was written into the region."""
        header = msgpack.packb({**worker.header(**fields), "memory": True})
        return self.ask("POST", f"{worker.path}/gradients", header)

    def close(self) -> None:
        """End the connection; what is mapped stays mapped."""
        self.wire.close()


def mapped(
    descriptor: int, nbytes: int, access: int = mmap.PROT_READ | mmap.PROT_WRITE
) -> np.ndarray:
    """Return the bytes of a region; closes the descriptor."""
    try:
        return np.frombuffer(mmap.mmap(descriptor, nbytes, prot=access), np.uint8)
    finally:
        os.close(descriptor)
