"""Foreign errors as ours: what a call raises when the connection or the other side fails."""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpx

from stepwell.errors import CertificateRefused, ConnectionFailed, TimedOut, TransportError
from stepwell.http_response import CutOff, NoHttp

_OTHER_NAME, _OTHER_ADDRESS = 62, 64
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


_SOCKETS: Mapping[type[OSError], tuple[str, str]] = {
    FileNotFoundError: (
        "there is no such file",
        "Start a server with that --uds, or see where its socket is; its log says so",
    ),
    PermissionError: (
        "it is another user's",
        "A server that needs no token lets its own user alone in; run as that one",
    ),
    ConnectionRefusedError: (
        "nobody listens there",
        "Is that a socket, and is the server running that made it?",
    ),
}
"""What it means that a Unix socket cannot be connected to, and what to do."""


def of_socket(error: OSError, where: str, *, is_connected: bool, was_sent: bool) -> TransportError:
    """Return our exception for what a `Connection` raised.

    Args:
        error: What was raised.
        where: The server's URL, or that of its socket.
        is_connected: Whether the server had been reached.
        was_sent: Whether it may have received a part of the request.
    """
    name = type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(where, error)
    if not is_connected:
        return _no_tls(where) if isinstance(error, ssl.SSLError) else _unreachable(where, error)
    if isinstance(error, TimeoutError):
        return TimedOut(f"{where} did not answer in time ({name})", was_sent=was_sent)
    return _broken(where, name, isinstance(error, NoHttp | CutOff), was_sent)


def of_httpx(error: httpx.HTTPError, where: str) -> TransportError:
    """Return our exception for one of httpx's.

    Args:
        error: What was raised.
        where: The server's URL, or that of its socket.
    """
    name = type(error).__name__
    refusal = _cause(error, ssl.SSLCertVerificationError)
    if refusal is not None:
        return _certificate(where, refusal)
    if isinstance(error, httpx.ConnectError) and _has_cause(error, ssl.SSLError):
        return _no_tls(where)
    if isinstance(error, httpx.ConnectTimeout | httpx.ConnectError | httpx.PoolTimeout):
        return _unreachable(where, _cause(error, OSError) or error)
    if isinstance(error, httpx.ProxyError):
        return ConnectionFailed(
            f"The proxy on the way to {where} refused ({error}); it is the one that the "
            "environment names, see NO_PROXY",
            was_sent=False,
        )
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{where} did not answer in time ({name})")
    if isinstance(error, httpx.TransportError):
        return _broken(where, name, isinstance(error, httpx.RemoteProtocolError), was_sent=True)
    return TransportError(f"The call to {where} failed ({name})")


def _certificate(where: str, error: BaseException) -> TransportError:
    if getattr(error, "verify_code", 0) in (_OTHER_NAME, _OTHER_ADDRESS):
        return CertificateRefused(
            f"The certificate of {where} is of another name or address. Use the one that is in "
            "it in the URL",
            was_sent=False,
        )
    return CertificateRefused(
        f"The certificate of {where} is not trusted. If it is your own, name it, or the authority "
        "that made it, in SSL_CERT_FILE, or give the client "
        "verify=ssl.create_default_context(cafile=...)",
        was_sent=False,
    )


def _no_tls(where: str) -> TransportError:
    return ConnectionFailed(
        f"{where} does not speak TLS; if it is a Stepwell server without a certificate, its "
        "URL begins with http://",
        was_sent=False,
    )


def _unreachable(where: str, error: BaseException) -> TransportError:
    if where.startswith("unix:"):
        reason, advice = next(
            (told for kind, told in _SOCKETS.items() if isinstance(error, kind)),
            (type(error).__name__, "Is that the server's --uds, or its memory_socket?"),
        )
        return ConnectionFailed(f"{where} cannot be reached: {reason}. {advice}", was_sent=False)
    return ConnectionFailed(
        f"{where} cannot be reached ({type(error).__name__}); is that the right name and port, and "
        "is the server running? Start one with `stepwell serve`, or say where it is with "
        "STEPWELL_URL",
        was_sent=False,
    )


def _broken(where: str, name: str, is_no_http: bool, was_sent: bool) -> TransportError:
    hint = "; if the server speaks TLS, its URL begins with https://"
    is_plain = where.startswith("http://")
    return ConnectionFailed(
        f"The connection to {where} broke ({name}){hint if is_no_http and is_plain else ''}",
        was_sent=was_sent,
    )


def _has_cause(error: BaseException, kind: type[BaseException]) -> bool:
    return _cause(error, kind) is not None


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the error itself, or what it came from, that is of a kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
