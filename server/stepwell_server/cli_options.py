"""Options and arguments that several commands have; each says the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[
    str | None, typer.Option(help="Of the server [STEPWELL_URL, or http://127.0.0.1:8700].")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, alone, on stdout.")]
ModelName = Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")]
