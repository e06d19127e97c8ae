"""The address: whether the port is free, and who may come in."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator

from stepwell_core.errors import StepwellError

from stepwell_server.doctor.data_folder import is_locked
from stepwell_server.doctor.finding import Finding
from stepwell_server.listening import AddressTaken, AddressUnusable, bound
from stepwell_server.settings import Settings
from stepwell_server.tokens import Authenticator, TokenStore

ANSWER_S = 2.0


def check_address(settings: Settings) -> Iterator[Finding]:
    """Yield what is found of it."""
    yield _port(settings)
    yield _tokens(settings)


def _port(settings: Settings) -> Finding:
    if settings.uds is not None:
        return Finding("port", "ok", f"it would listen on {settings.uds}")
    where = f"{settings.host}:{settings.port}"
    try:
        for listener in bound(settings.host, settings.port):
            listener.close()
    except AddressTaken:
        return _who_is_there(settings, where)
    except AddressUnusable as error:
        found, _, advice = error.message.partition("; ")
        return Finding("port", "failed", found, advice)
    return Finding("port", "ok", f"{where} is free")


def _who_is_there(settings: Settings, where: str) -> Finding:
    advice = f"choose another with --port, or see who it is: ss -ltnp 'sport = :{settings.port}'"
    if not _is_stepwell(settings):
        return Finding("port", "failed", f"{where} is taken by another program", advice)
    if not is_locked(settings.data_dir):
        found = f"{where} is taken by a Stepwell server that uses another data folder"
        return Finding("port", "failed", found, advice)
    return Finding("port", "ok", f"a Stepwell server answers at {where} already")


def _is_stepwell(settings: Settings) -> bool:
    """Return whether what listens there answers as a server does."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    if settings.tls_cert is None:
        connection = http.client.HTTPConnection(host, settings.port, timeout=ANSWER_S)
    else:  # nothing but its health is asked, so whoever it says it is may answer
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            host, settings.port, timeout=ANSWER_S, context=context
        )
    try:
        connection.request("GET", "/readyz", headers={"Connection": "close"})
        answer = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return isinstance(answer, dict) and answer.get("status") in ("ready", "not ready", "degraded")


def _tokens(settings: Settings) -> Finding:
    try:
        is_open = Authenticator(TokenStore(settings.data_dir), settings.token_file).is_open
    except StepwellError as error:
        return Finding("tokens", "failed", error.message, "make the file as docs/roles.md says")
    if is_open and not settings.is_loopback:
        command = f"stepwell token create --role admin --data-dir {settings.data_dir}"
        found = f"there is none, and other machines can reach {settings.host}"
        return Finding("tokens", "failed", found, f"{command}, or --host 127.0.0.1")
    if is_open:
        return Finding("tokens", "ok", "there is none: everyone on this machine is admin")
    if not settings.is_loopback and settings.tls_cert is None:
        advice = "use --tls-cert, or put TLS in front of the server"
        return Finding("tokens", "warning", "tokens travel in the clear", advice)
    return Finding("tokens", "ok", "they are needed")
