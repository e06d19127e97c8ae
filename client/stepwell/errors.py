"""What a client can raise: the core's tree, and a branch for what happens on the way.

StepwellError
├── ... everything in `stepwell_core.errors`: what the server says, one class a code
├── ClientClosed            the client, or what it made, was closed before
└── TransportError
    ├── ConnectionFailed    the server cannot be reached, or the connection broke
    ├── CertificateRefused  the server's certificate is not one that the client trusts
    ├── TimedOut            the server did not answer in time
    └── UnexpectedAnswer    something answered that is not a Stepwell server of this protocol
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell_core.errors import (
    BodyTooLarge,
    BodyTooSlow,
    CheckpointInvalid,
    CheckpointNotFound,
    Conflict,
    DataFolderInvalid,
    DiskFull,
    DoesNotFit,
    DtypeMismatch,
    Fenced,
    Forbidden,
    HeaderTooLarge,
    InternalError,
    InvalidArgument,
    InvalidInput,
    InvalidName,
    JournalBehind,
    JournalInvalid,
    LayoutMismatch,
    MalformedMessage,
    MethodNotAllowed,
    MixedKinds,
    ModelDiffers,
    ModelExists,
    ModelNotFound,
    ModelReadOnly,
    NonFiniteGradient,
    NoSharedMemory,
    NotAcceptable,
    NotFound,
    NothingToFinalize,
    PayloadMismatch,
    PayloadSizeMismatch,
    PreconditionFailed,
    PushInFlight,
    PushNotFound,
    RouteNotFound,
    SequenceGap,
    SessionExpired,
    ShapeMismatch,
    ShuttingDown,
    StagingFull,
    StaleIncarnation,
    StepwellError,
    StoreFailed,
    TooManyWorkers,
    Unauthenticated,
    Unavailable,
    UnknownSession,
    UnknownTensor,
    UnsupportedMediaType,
    VersionsExhausted,
    WorkerNotFound,
    by_code,
)

__all__ = [
    "BodyTooLarge",
    "BodyTooSlow",
    "CertificateRefused",
    "CheckpointInvalid",
    "CheckpointNotFound",
    "ClientClosed",
    "Conflict",
    "ConnectionFailed",
    "DataFolderInvalid",
    "DiskFull",
    "DoesNotFit",
    "DtypeMismatch",
    "Fenced",
    "Forbidden",
    "HeaderTooLarge",
    "InternalError",
    "InvalidArgument",
    "InvalidInput",
    "InvalidName",
    "JournalBehind",
    "JournalInvalid",
    "LayoutMismatch",
    "MalformedMessage",
    "MethodNotAllowed",
    "MixedKinds",
    "ModelDiffers",
    "ModelExists",
    "ModelNotFound",
    "ModelReadOnly",
    "NoSharedMemory",
    "NonFiniteGradient",
    "NotAcceptable",
    "NotFound",
    "NothingToFinalize",
    "PayloadMismatch",
    "PayloadSizeMismatch",
    "PreconditionFailed",
    "PushInFlight",
    "PushNotFound",
    "RouteNotFound",
    "SequenceGap",
    "SessionExpired",
    "ShapeMismatch",
    "ShuttingDown",
    "StagingFull",
    "StaleIncarnation",
    "StepwellError",
    "StoreFailed",
    "TimedOut",
    "TooManyWorkers",
    "TransportError",
    "Unauthenticated",
    "Unavailable",
    "UnexpectedAnswer",
    "UnknownSession",
    "UnknownTensor",
    "UnsupportedMediaType",
    "VersionsExhausted",
    "WorkerNotFound",
    "from_problem",
]


class ClientClosed(StepwellError, RuntimeError):
    """The client, or what it made, was closed before; nothing was sent."""

    code = "client_closed"


class TransportError(StepwellError):
    """Something went wrong between client and server.

    Attributes:
        was_sent: Whether the server may have received the request, wholly or in part.
    """

    code = "transport_error"

    # The default lets an exception go through pickle, as between processes.
    def __init__(self, message: str, *, was_sent: bool = True, **details: Any) -> None:
        super().__init__(message, **details)
        self.was_sent = was_sent


class ConnectionFailed(TransportError):
    """The server cannot be reached, or the connection broke."""

    code = "connection_failed"


class CertificateRefused(TransportError):
    """The server's certificate is not one that the client trusts."""

    code = "certificate_refused"


class TimedOut(TransportError):
    """The server did not answer in time."""

    code = "timed_out"


class UnexpectedAnswer(TransportError):
    """Something answered that is not a Stepwell server of this protocol."""

    code = "unexpected_answer"


_BY_STATUS: Mapping[int, type[StepwellError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: InvalidInput,
    503: Unavailable,
}
"""What the codes of a newer server mean to this client: the branch that they must be on."""

_OWN = (ClientClosed, TransportError)
"""What no server can say."""

_NOT_DETAILS = frozenset({"type", "title", "detail", "self", "message", "was_sent"})


def from_problem(document: Mapping[str, Any], status: int) -> StepwellError:
    """Return the exception that a problem document describes.

    Its `details` have what the document says beside the text, and `status`. A code that this client
    does not know gives the class of its branch by the status, else `StepwellError` itself.
    """
    details = {str(name): value for name, value in document.items() if name not in _NOT_DETAILS}
    details["status"] = status
    message = str(document.get("detail") or document.get("title") or f"HTTP status {status}")
    cls = by_code().get(str(document.get("code")))
    if cls is None or issubclass(cls, _OWN):
        cls = _BY_STATUS.get(status, StepwellError)
    return cls(message, **details)
