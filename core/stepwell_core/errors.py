"""Every error of Stepwell, one class and one stable code each.

    StepwellError
    ├── InvalidInput             what was sent breaks a rule; nothing changed
    │   ├── InvalidArgument      an optimizer, schedule or mode got a value outside its range
    │   ├── InvalidName          a name is not of the allowed form
    │   ├── UnknownTensor        the layout has no tensor of that name
    │   ├── ShapeMismatch        a tensor has another shape than the layout says
    │   ├── DtypeMismatch        a tensor has a dtype that cannot be held or decoded
    │   ├── LayoutMismatch       the message was made for another layout
    │   ├── PayloadSizeMismatch  the payload is shorter or longer than the layout says
    │   ├── NonFiniteGradient    a gradient holds NaN or infinity and the model rejects those
    │   ├── PayloadMismatch      the same sequence number came with other bytes
    │   └── MixedKinds           a gradient would be in one step with a delta
    ├── MalformedMessage         the bytes are not a message of the protocol
    ├── Unauthenticated          no token, or one that is not known
    ├── Forbidden                the token's role does not allow the call
    ├── NotFound
    │   ├── ModelNotFound
    │   ├── WorkerNotFound
    │   ├── PushNotFound
    │   ├── CheckpointNotFound
    │   └── RouteNotFound
    ├── MethodNotAllowed
    ├── NotAcceptable            no representation that the caller accepts
    ├── UnsupportedMediaType     a body of a type or encoding that is not taken
    ├── Conflict                 the call is well formed, but the state does not allow it
    │   ├── ModelExists          a model of that name exists already
    │   ├── ModelDiffers         a model of that name exists with another definition
    │   ├── Fenced               a newer session of the same worker exists
    │   ├── UnknownSession       no such session is open
    │   ├── SessionExpired       the session was closed or its lease ran out
    │   ├── SequenceGap          a push was skipped
    │   ├── PushInFlight         the session has another push under way
    │   ├── StaleIncarnation     the model's history was cut since the session was opened
    │   ├── PreconditionFailed   If-Match names an older state
    │   ├── NothingToFinalize    the moving average has seen no step yet
    │   └── NoSharedMemory       this connection shares no memory, or there is none for it
    ├── HeaderTooLarge           more bytes or lines of HTTP header than the server takes
    ├── BodyTooLarge             more bytes than the server takes
    ├── BodyTooSlow              the body stalled or came too slowly
    ├── Unavailable              not now; the same call may succeed later
    │   ├── ShuttingDown
    │   ├── VersionsExhausted    slow readers hold every spare version
    │   ├── StagingFull          no memory came free for a body in time
    │   ├── JournalBehind        the journal grew faster than checkpoints are written
    │   ├── ModelReadOnly        the disk failed: until a restart the model is only read
    │   └── TooManyWorkers
    ├── DoesNotFit               the model needs more memory or disk than there is
    │   └── DiskFull             the disk has no room for a push's record; nothing changed
    ├── StoreFailed              an object store cannot be reached or refuses; nothing changed
    ├── JournalInvalid           a record that was on the disk is missing or damaged
    ├── CheckpointInvalid        a checkpoint is incomplete or does not match its hashes
    ├── DataFolderInvalid        the data folder cannot be used by this server
    └── InternalError            a bug in Stepwell; the log has the trace

An error says what was received, what the rule is and what to do next. It names shapes and dtypes,
never the numbers in an array. `details` are plain values that travel in the problem document.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Any, ClassVar


class StepwellError(Exception):
    """Base of every error that Stepwell raises.

    Args:
        message: One or two sentences: the rule, what was received, the next thing to do.
        details: Plain JSON values, kept as an attribute and sent in the problem document.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidInput(StepwellError):
    """What was sent breaks a rule; nothing changed."""

    code = "invalid_input"


class InvalidArgument(InvalidInput, ValueError):
    """An optimizer, schedule or mode got a value outside its range."""

    code = "invalid_argument"


class InvalidName(InvalidInput):
    """A name is not of the allowed form."""

    code = "invalid_name"


class UnknownTensor(InvalidInput):
    """The layout has no tensor of that name."""

    code = "unknown_tensor"


class ShapeMismatch(InvalidInput):
    """A tensor has another shape than the layout says."""

    code = "shape_mismatch"


class DtypeMismatch(InvalidInput):
    """A tensor has a dtype that cannot be held or decoded."""

    code = "dtype_mismatch"


class LayoutMismatch(InvalidInput):
    """The message was made for another layout."""

    code = "layout_mismatch"


class PayloadSizeMismatch(InvalidInput):
    """The payload is shorter or longer than the layout says."""

    code = "payload_size_mismatch"


class NonFiniteGradient(InvalidInput):
    """A gradient holds NaN or infinity and the model rejects those."""

    code = "nonfinite_gradient"


class PayloadMismatch(InvalidInput):
    """The same sequence number came with other bytes."""

    code = "payload_mismatch"


class MixedKinds(InvalidInput):
    """A gradient would be in one step with a delta."""

    code = "mixed_kinds"


class MalformedMessage(StepwellError):
    """The bytes are not a message of the protocol."""

    code = "malformed_message"


class Unauthenticated(StepwellError):
    """No token, or one that is not known."""

    code = "unauthenticated"


class Forbidden(StepwellError):
    """The token's role does not allow the call."""

    code = "forbidden"


class NotFound(StepwellError):
    """There is nothing of that name."""

    code = "not_found"


class ModelNotFound(NotFound):
    """There is no model of that name."""

    code = "model_not_found"


class WorkerNotFound(NotFound):
    """The model knows no worker of that name."""

    code = "worker_not_found"


class PushNotFound(NotFound):
    """The session neither stores nor awaits a push of that sequence number."""

    code = "push_not_found"


class CheckpointNotFound(NotFound):
    """The model has no checkpoint of that name."""

    code = "checkpoint_not_found"


class RouteNotFound(NotFound):
    """The server has no such path."""

    code = "route_not_found"


class MethodNotAllowed(StepwellError):
    """The path exists, but not for that method."""

    code = "method_not_allowed"


class NotAcceptable(StepwellError):
    """No representation that the caller accepts."""

    code = "not_acceptable"


class UnsupportedMediaType(StepwellError):
    """A body of a type or encoding that is not taken."""

    code = "unsupported_media_type"


class Conflict(StepwellError):
    """The call is well formed, but the state does not allow it."""

    code = "conflict"


class ModelExists(Conflict):
    """A model of that name exists already."""

    code = "model_exists"


class ModelDiffers(Conflict):
    """A model of that name exists with another definition."""

    code = "model_differs"


class Fenced(Conflict):
    """A newer session of the same worker exists."""

    code = "fenced"


class UnknownSession(Conflict):
    """No such session is open."""

    code = "unknown_session"


class SessionExpired(Conflict):
    """The session was closed or its lease ran out, and nobody took the name since."""

    code = "session_expired"


class SequenceGap(Conflict):
    """A push was skipped; `details["expected"]` is the sequence number that is due."""

    code = "sequence_gap"


class PushInFlight(Conflict):
    """The session has another push under way."""

    code = "push_in_flight"


class StaleIncarnation(Conflict):
    """The model's history was cut since the session was opened; `details` has the new state."""

    code = "stale_incarnation"


class PreconditionFailed(Conflict):
    """If-Match names an older state."""

    code = "precondition_failed"


class NothingToFinalize(Conflict):
    """The moving average has seen no step yet."""

    code = "nothing_to_finalize"


class NoSharedMemory(Conflict):
    """This connection shares no memory with the server, or there is none for it."""

    code = "no_shared_memory"


class HeaderTooLarge(StepwellError):
    """More bytes or lines of HTTP header than the server takes."""

    code = "header_too_large"


class BodyTooLarge(StepwellError):
    """More bytes than the server takes."""

    code = "body_too_large"


class BodyTooSlow(StepwellError):
    """The body stalled or came too slowly."""

    code = "body_too_slow"


class Unavailable(StepwellError):
    """Not now; the same call may succeed later."""

    code = "unavailable"


class ShuttingDown(Unavailable):
    """The server is stopping; the push was not admitted and may be sent again."""

    code = "shutting_down"


class VersionsExhausted(Unavailable):
    """Slow readers hold every spare version."""

    code = "versions_exhausted"


class StagingFull(Unavailable):
    """No memory came free for a body in time."""

    code = "staging_full"


class JournalBehind(Unavailable):
    """The journal grew faster than checkpoints are written; the push was not admitted."""

    code = "journal_behind"


class ModelReadOnly(Unavailable):
    """The disk failed: until the server is restarted the model is only read."""

    code = "model_read_only"


class TooManyWorkers(Unavailable):
    """The model has as many open sessions as it takes."""

    code = "too_many_workers"


class DoesNotFit(StepwellError):
    """The model needs more memory or disk than there is."""

    code = "does_not_fit"


class DiskFull(DoesNotFit):
    """The disk has no room for it; nothing changed."""

    code = "disk_full"


class StoreFailed(StepwellError):
    """The object store cannot be reached, or refuses; nothing changed."""

    code = "store_failed"


class JournalInvalid(StepwellError):
    """A record of the journal that was on the disk is missing or damaged."""

    code = "journal_invalid"


class CheckpointInvalid(StepwellError):
    """A checkpoint is incomplete or does not match its hashes."""

    code = "checkpoint_invalid"


class DataFolderInvalid(StepwellError):
    """The data folder cannot be used by this server."""

    code = "data_folder_invalid"


class InternalError(StepwellError):
    """A bug in Stepwell; the log has the trace."""

    code = "internal_error"


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def shown(value: object) -> str:
    """Return `value` as an error shows it: on one short line, however large it is.

    Reads only the beginning of a long list or string: it may be as long as a stranger's message.
    """
    try:
        text = _short.repr(value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        return f"<{type(value).__name__} too long to show>"
    return text if len(text) <= 160 else f"{text[:157]}..."


def every_error(root: type[StepwellError] = StepwellError) -> Iterator[type[StepwellError]]:
    """Yield `root` and all classes below it, parents before children."""
    yield root
    for child in root.__subclasses__():
        yield from every_error(child)


def by_code() -> dict[str, type[StepwellError]]:
    """Return the class of each code; the client uses it to raise what the server meant.

    A class that has its parent's code is a finer point of the server's own.
    """
    return {error.code: error for error in every_error() if "code" in vars(error)}
