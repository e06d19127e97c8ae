"""The settings of commands that start a server, or look at where one would start."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from stepwell.command import quick_to_leave
from stepwell_core.errors import shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from stepwell_server.settings import Settings

EXIT_USAGE = 2

PREFIX = "STEPWELL_"
OTHER_VARIABLES = ("STEPWELL_CONFIG", "STEPWELL_URL", "STEPWELL_TOKEN", "STEPWELL_CACHE_DIR")
"""Which are no settings of a server."""

OF_OTHERS = re.compile(
    r"STEPWELL_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?|\w+_PORT)"
)
"""Not misspelt, though some are like a setting: Kubernetes makes them, of Services whose names
begin with `stepwell`, and docker-compose.yml has ports."""

errors = Console(stderr=True, soft_wrap=True, highlight=False)


def load_settings(config: Path | None, **flags: Any) -> Settings:
    """Return the settings, or say which of them cannot be and end with 2.

    Args:
        config: A TOML file.
        flags: By the settings' names; None if one was not given.
    """
    with quick_to_leave():
        from pydantic import ValidationError

        from stepwell_server.settings import Settings, is_of_kubernetes

    for sentence in misspelt(os.environ, Settings.model_fields):
        errors.print(f"stepwell: {sentence}", markup=False)
    if is_of_kubernetes(port := os.environ.get("STEPWELL_PORT")):
        errors.print(
            f"stepwell: STEPWELL_PORT is {shown(port)}, which Kubernetes says of a Service that is "
            "called stepwell, and is ignored; `enableServiceLinks: false` in the pod keeps it away",
            markup=False,
        )
    try:
        return Settings.load(config, **flags)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            errors.print(f"stepwell: {_sentence(found, Settings.model_fields)}", markup=False)
        raise typer.Exit(EXIT_USAGE) from None
    except (OSError, ValueError) as error:
        errors.print(f"stepwell: {error}", markup=False)
        raise typer.Exit(EXIT_USAGE) from None


def _sentence(found: ErrorDetails, names: Iterable[str]) -> str:
    """Return what is wrong with one setting, in a sentence."""
    name = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return f"There is no setting {name!r}{_suggestion(name, names, 0.7)}; see docs/settings.md"
    rule = found["msg"].removeprefix("Value error, ")
    if not name:  # several settings together
        return rule
    received = (
        "what may have a password in it" if "@" in str(found["input"]) else shown(found["input"])
    )
    return f"{name}: {rule}. Received: {received}"


def misspelt(environment: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return a sentence for each variable that is almost the name of a setting, and is none.

    Args:
        environment: Names of variables.
        names: Of the settings.
    """
    known = [*(f"{PREFIX}{name.upper()}" for name in names), *OTHER_VARIABLES]
    return [
        f"{name} is no setting and has no effect{suggestion}"
        for name in environment
        if name.startswith(PREFIX) and name not in known and not OF_OTHERS.fullmatch(name)
        if (suggestion := _suggestion(name, known, 0.85))
    ]


def _suggestion(name: str, names: Iterable[str], likeness: float) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=likeness)
    return f" (did you mean {close[0]!r}?)" if close else ""
