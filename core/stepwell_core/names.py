"""What a name may look like.

Models, workers and checkpoints become folder names and parts of URLs, so their form is narrow.
Tensor names come from other frameworks (`dense_1/kernel:0`, `encoder.layers.3.weight`), so theirs
is wide; they are never used as paths.
"""

from __future__ import annotations

import re

from stepwell_core.errors import InvalidName, shown

IDENTIFIER = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_TENSOR_NAME_LENGTH = 256
RESERVED_TENSOR_NAME = "__metadata__"  # safetensors keeps its own notes under it

_identifier = re.compile(IDENTIFIER + r"\Z")


def check_identifier(name: object, what: str) -> str:
    """Return `name` if it may name a model, worker or checkpoint.

    Args:
        name: What was received.
        what: The word for the error: "model", "worker" or "checkpoint".

    Raises:
        InvalidName: `name` is not of the form `IDENTIFIER`.
    """
    if isinstance(name, str) and _identifier.match(name):
        return name
    raise InvalidName(
        f"A {what} name has 1 to 64 lower-case letters, digits, '.', '_' or '-', and begins with a "
        f"letter or digit. Received: {shown(name)}",
        pattern=IDENTIFIER,
    )


def check_tensor_name(name: object) -> str:
    """Return `name` if it may name a tensor.

    Raises:
        InvalidName: `name` is empty, longer than 256 characters, not printable, begins with '/' or
            has a '..' part.
    """
    if (
        isinstance(name, str)
        and 0 < len(name) <= MAX_TENSOR_NAME_LENGTH
        and name.isprintable()
        and not name.startswith("/")
        and name != RESERVED_TENSOR_NAME
        and ".." not in name.split("/")
    ):
        return name
    raise InvalidName(
        f"A tensor name has 1 to {MAX_TENSOR_NAME_LENGTH} printable characters, no leading '/', "
        f"no '..' part, and is not {RESERVED_TENSOR_NAME}. Received: {shown(name)}",
    )
