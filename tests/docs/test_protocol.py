"""What the protocol's page names, codes and calls, is what the server has; all of it."""

from __future__ import annotations

import re

import pytest
from stepwell_core.errors import by_code, every_error
from stepwell_server.gate import PUBLIC, ROLE_OF_ROUTE
from stepwell_server.problems import status_of

from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs" / "protocol.md").read_text()
CODES_BY_STATUS = {
    int(status): set(re.findall(r"`([a-z_]+)`", codes))
    for status, codes in re.findall(r"^\| (\d{3}) \| (.*) \|$", PAGE, re.MULTILINE)
}


def test_every_code_stands_with_its_status():
    """A program that reads the table knows every answer that is no success."""
    expected = {}
    for error in every_error():
        if error.__module__ == "stepwell_core.errors" and "code" in vars(error):
            expected.setdefault(status_of(error), set()).add(error.code)

    assert expected == CODES_BY_STATUS


def test_a_status_in_the_text_is_that_of_the_code_behind_it():
    """Wherever a page says `409 stale_incarnation` or the like."""
    wrong = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for status, code in re.findall(r"\b([2-5]\d\d) `([a-z_]+)`", page.read_text()):
            if code in by_code() and status_of(by_code()[code]) != int(status):
                wrong.append(f"{page.name}: {status} {code}")

    assert not wrong


@pytest.mark.parametrize(("method", "path"), sorted(ROLE_OF_ROUTE), ids=lambda part: str(part))
def test_every_call_is_in_the_page(method, path):
    """Shortened as people write it: `POST .../{id}/verify`."""
    short = path.replace("/v1/models/{model}", "...").replace("{name:path}", "{name}")
    short = short.replace("{checkpoint}", "{id}").removesuffix("{number}")
    forms = {short, path, short.replace(".../checkpoints/{id}/", ".../{id}/")}

    pattern = rf"`([A-Z]+`, `)*{method}(`?, `?[A-Z]+)* ({'|'.join(map(re.escape, forms))})\W"
    assert re.search(pattern, PAGE), f"{method} {short}"


def test_public_paths_are_named():
    """Those that need no token."""
    roles = (ROOT / "docs" / "roles.md").read_text()

    assert all(f"`{path}` | public |" in roles for path in PUBLIC)
