"""Where a request begins and ends, by its header; what could be read in two ways is refused.

Two programs that read one stream differently let a stranger hide a request in another's body. The
parser refuses most of it (RFC 9112, section 6.3); here is the rest, and the limits that it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence

from stepwell_core.errors import HeaderTooLarge, MalformedMessage

MAX_HEADER_BYTES = 32 * 1024  # four times what nginx takes; a token and a trace are below 2 KiB
MAX_HEADER_LINES = 100  # Python's http.client takes as many in an answer

Headers = Sequence[tuple[bytes, bytes]]


def check_size(url: bytes, headers: Headers) -> None:
    """Check a whole header, O(lines).

    Raises:
        HeaderTooLarge: It has too many bytes or lines.
    """
    if len(headers) > MAX_HEADER_LINES:
        raise HeaderTooLarge(
            f"A request has at most {MAX_HEADER_LINES} lines of header. Received: {len(headers)}"
        )
    nbytes = len(url) + sum(len(name) + len(value) for name, value in headers)
    if nbytes > MAX_HEADER_BYTES:
        raise header_too_large(nbytes)


def header_too_large(received: int) -> HeaderTooLarge:
    """Return the error for a header, or for what never becomes one, of so many bytes."""
    return HeaderTooLarge(
        f"A request's header has at most {MAX_HEADER_BYTES} bytes. Received: {received}"
    )


def body_length(http_version: str, headers: Headers, is_upgrade: bool) -> int | None:
    """Return how many bytes of body follow; None if they come in chunks.

    Args:
        http_version: As "1.1".
        headers: With names in lower case.
        is_upgrade: Whether the parser takes what follows for another protocol.

    Raises:
        MalformedMessage: It cannot be told for sure.
    """
    lengths = [value.strip() for name, value in headers if name == b"content-length"]
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise MalformedMessage("The length of a body is said once, by one header")
    if lengths and not (lengths[0].isdigit() and len(lengths[0]) < 20):
        raise MalformedMessage("Content-Length is a number of bytes")
    if codings and (codings[0] != b"chunked" or http_version != "1.1"):
        raise MalformedMessage("The one Transfer-Encoding that is taken is `chunked`, in HTTP/1.1")
    length = None if codings else int(lengths[0]) if lengths else 0
    if is_upgrade and length != 0:
        raise MalformedMessage("Stepwell speaks HTTP/1.1 only: send a body without `Upgrade`")
    return length
