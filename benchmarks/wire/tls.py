"""The 102 MB rows over TLS, beside the raw TLS socket: most of what is added is the cipher."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import adam, ours
from benchmarks.contenders import HTTP, RAW
from benchmarks.measure import Result, Row, medians, ms, not_measured, shown
from benchmarks.server import serving
from benchmarks.wire import certificate
from benchmarks.wire.large import ROUNDS, SIZE, Contenders, Limits, alone, raw

PUSH = "push 102 MB over TLS with its Adam step, against raw TLS socket + kernel + one read"
PULL = "pull 102 MB over TLS, against the raw TLS socket"
CIPHER = "the cipher: raw TLS socket, against the raw socket"


def run(size: int = SIZE, rounds: int = ROUNDS) -> Result:
    """Measure everything."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            pem, key = certificate.make(folder)
        except certificate.NoOpenssl as error:
            return Result([not_measured(what, "-", str(error)) for what in (PUSH, PULL, CIPHER)])
        server = stack.enter_context(serving("--tls-cert", pem, "--tls-key", key))
        plain = {f"plain {name}": run for name, run in raw(stack, size).items()}
        encrypted = raw(stack, size, pem, key) | _ours(stack, server.url, size, pem)
        seconds = medians(plain | alone(size) | encrypted, rounds)
        return Result(_rows(seconds, _cipher(server.url, pem)), seconds)


def _ours(stack: contextlib.ExitStack, url: str, size: int, pem: str) -> Contenders:
    start, gradients = {ours.TENSOR: adam.parameters(size)}, {ours.TENSOR: adam.gradient(size)}
    trust = ssl.create_default_context(cafile=pem)
    worker = stack.enter_context(ours.working(url, start, model="tls", verify=trust))
    ours.check(worker, gradients)
    return {f"{HTTP}/push": lambda: worker.push(gradients), f"{HTTP}/pull": ours.pulls(worker)}


def _cipher(url: str, pem: str) -> str:
    """Return the name of the cipher that a client and the server agree on."""
    address = urlsplit(url)
    context = ssl.create_default_context(cafile=pem)
    with (
        socket.create_connection((address.hostname, address.port)) as plain,
        context.wrap_socket(plain, server_hostname=address.hostname) as encrypted,
    ):
        name, version, _ = encrypted.cipher() or ("none", "none", 0)
        return f"{name}, {version}"


def _rows(seconds: dict[str, float], cipher: str) -> list[Row]:
    push, pull = seconds[f"{HTTP}/push"], seconds[f"{HTTP}/pull"]
    up, down = seconds[f"{RAW}/push"], seconds[f"{RAW}/pull"]
    limits = Limits(up, down, seconds["kernel"], seconds["one read"])
    plain = seconds[f"plain {RAW}/push"]
    return [
        shown(PUSH, push / limits.push, f"{ms(push)} against {limits.push_shown()}"),
        shown(PULL, pull / down, f"{ms(pull)} against {ms(down)}"),
        shown(CIPHER, up / plain, f"{ms(up)} against {ms(plain)}; {cipher}"),
    ]
