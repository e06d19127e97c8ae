"""Tables on terminals that are narrow, and where there is none."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from stepwell_server.cli_tables import table

COLUMNS = ("model", "version", "size", "optimizer")
ROW = ("digits", "1234567890", "4.00 kB", "SGD")


def lines(width: int) -> list[str]:
    """Return what is printed."""
    console = Console(file=io.StringIO(), width=width)
    drawn = table(COLUMNS, [ROW], width, numbers=("version", "size"), may_go=("optimizer", "size"))
    console.print(drawn)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("width", "shown"),
    [(38, COLUMNS), (37, COLUMNS[:3]), (27, COLUMNS[:3]), (26, COLUMNS[:2])],
)
def test_what_has_no_room_goes_and_no_number_is_folded(width, shown):
    """Each line of a folded number would be read as another one."""
    head, *rows = lines(width)

    assert tuple(head.split()) == shown
    assert len(rows) == 1
    assert ROW[1] in rows[0]
