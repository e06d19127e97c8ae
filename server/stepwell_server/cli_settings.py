"""The settings of commands that start a server, or look at where one would start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from stepwell_server.settings import Settings

EXIT_USAGE = 2

errors = Console(stderr=True, soft_wrap=True, highlight=False)


def load_settings(config: Path | None, **flags: Any) -> Settings:
    """Return the settings, or say which of them cannot be and end with 2.

    Args:
        config: A TOML file.
        flags: By the settings' names; None if one was not given.
    """
    from pydantic import ValidationError

    from stepwell_server.settings import Settings

    try:
        return Settings.load(config, **flags)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            name = ".".join(str(part) for part in found["loc"]) or "settings"
            errors.print(
                f"stepwell: {name}: {found['msg'].removeprefix('Value error, ')}", markup=False
            )
        raise typer.Exit(EXIT_USAGE) from None
    except (OSError, ValueError) as error:
        errors.print(f"stepwell: {error}", markup=False)
        raise typer.Exit(EXIT_USAGE) from None
