"""The address: whether the port is free, the certificate good, and who may come in."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from stepwell_core.errors import StepwellError

from stepwell_server.doctor.data_folder import is_locked
from stepwell_server.doctor.finding import Finding
from stepwell_server.listening import (
    MOST_PATH_BYTES,
    AddressTaken,
    AddressUnusable,
    bound,
    is_served,
)
from stepwell_server.settings import Settings
from stepwell_server.tokens import Authenticator, TokenStore

ANSWER_S = 2.0

SOON_DAYS = 14
"""A server reads its certificate when it starts, so somebody must plan a restart."""

NEW_CERTIFICATE = "get a new one, and restart the server, which reads it at its start"


def check_address(settings: Settings) -> Iterator[Finding]:
    """Yield what is found of it."""
    yield _port(settings) if settings.uds is None else _unix_socket(settings, settings.uds)
    if settings.tls_cert is not None:
        yield _certificate(settings.tls_cert, settings.tls_key)
    yield _tokens(settings)


def _port(settings: Settings) -> Finding:
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


def _unix_socket(settings: Settings, path: Path) -> Finding:
    advice = "choose another --uds"
    try:
        is_there = path.exists()
        if is_there and not path.is_socket():
            return Finding("port", "failed", f"{path} is no socket", advice)
        if is_there and is_served(path):
            if is_locked(settings.data_dir):
                return Finding("port", "ok", f"a server answers at {path} already")
            return Finding("port", "failed", f"another server listens on {path}", advice)
    except OSError as error:
        found = f"{path} cannot be looked at ({error.strerror})"
        return Finding("port", "failed", found, advice)
    if (length := len(os.fsencode(path))) > MOST_PATH_BYTES:
        found = f"{path} has {length} bytes, and the path of a socket at most {MOST_PATH_BYTES}"
        return Finding("port", "failed", found, advice)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        found = f"{path.parent} is not there, or cannot be written by user {os.geteuid()}"
        return Finding("port", "failed", found, f"make that folder, or {advice}")
    return Finding("port", "ok", f"it would listen on {path}")


def _certificate(cert: Path, key: Path | None) -> Finding:
    """Load them as the server would, and look how long the certificate is good."""
    check = "certificate"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # nobody is asked for one
        last = _last_moment(cert)
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        found = f"{cert} or its key cannot be used ({reason})"
        return Finding(check, "failed", found, "both are PEM files, without a password")
    if last is None:
        return Finding(check, "ok", f"{cert} can be used")
    days = (ssl.cert_time_to_seconds(last) - time.time()) / 86400
    if days < 0:
        return Finding(check, "failed", f"{cert} ended {-days:.0f} days ago", NEW_CERTIFICATE)
    if days < SOON_DAYS:
        return Finding(check, "warning", f"{cert} ends in {days:.0f} days", NEW_CERTIFICATE)
    return Finding(check, "ok", f"{cert} is good for {days:.0f} days")


def _last_moment(cert: Path) -> str | None:
    """Return the end of a certificate, of the first in a chain; None where Python cannot tell."""
    module = getattr(ssl, "_ssl", None)  # nothing public reads a certificate that is no authority
    decode = getattr(module, "_test_decode_cert", None)
    return None if decode is None else str(decode(os.fspath(cert))["notAfter"])


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
