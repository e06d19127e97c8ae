"""What the protocol's page names, codes and calls, is what the server has; all of it."""

from __future__ import annotations

import dataclasses
import re

import pytest
from stepwell_core import norms, session, wire
from stepwell_core.consistency import base, bounded, buffered, synchronous
from stepwell_core.errors import by_code, every_error
from stepwell_server import deadlines, drain, representations, staging
from stepwell_server.gate import PUBLIC, ROLE_OF_ROUTE
from stepwell_server.history import events, listeners, reading, ring, steps
from stepwell_server.problems import status_of
from stepwell_server.routes import history, memory, parameters
from stepwell_server.routes.gradients import PushHeader
from stepwell_server.settings import Settings
from stepwell_server.shared_memory import connection

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


def table(heading: str) -> dict[str, str]:
    """Return the rows of the table with that first line: what each name's row says."""
    rows = PAGE.partition(heading)[2].lstrip().partition("\n\n")[0]
    cells = [re.fullmatch(r"\| (.*?) \|(.*)\|", row) for row in rows.splitlines()]
    return {name: cell[2] for cell in cells if cell for name in re.findall(r"`([\w.]+)`", cell[1])}


def test_fields_of_a_push_and_of_queries_are_those_that_are_taken():
    """No more, so that nobody is answered 422; and no less."""
    push = set(PushHeader.model_fields)
    pull = set(parameters.PullQuery.model_fields)

    assert set(table("| field | meaning |\n|---|---|\n| `protocol`") | {"protocol": ""}) == push
    assert set(table("all tensors of one version. In the query:")) == pull
    assert set(table("says what happened to a model. In the query:")) == set(
        history.HistoryQuery.model_fields
    )


def test_events_are_those_of_the_history():
    """Each kind with its fields."""
    rows = table("| kind | fields |")

    assert set(rows) == set(events.KINDS)
    for kind in vars(events).values():
        if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event:
            fields = {field.name for field in dataclasses.fields(kind)} - {"version"}
            assert set(re.findall(r"`(\w+)`", rows[kind.kind])) >= fields, kind


def test_outcomes_are_those_of_the_code():
    """Each has a row, in the protocol's page."""
    table = PAGE.partition("| outcome | |")[2].partition("\n\n")[0]

    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(session.OUTCOMES)


def test_numbers_of_the_page_are_those_of_the_code():
    """Times, rates and counts, in the words in which they stand there."""
    said = " ".join(PAGE.split())
    sentences = [
        f"**header** (at most {wire.MAX_HEADER_BYTES >> 10} KiB)",
        f"{wire.MAX_SMALL_BINS:,} of them, and one more for each {wire.LEAST_BIN_BYTES >> 10} KiB",
        f"at most {representations.MAX_JSON_ELEMENTS:,} elements (else 406)",
        f"gets JSON up to {representations.MAX_DEFAULT_JSON_ELEMENTS:,}, and msgpack above",
        f"older than the {session.STORED_RESULTS} results that are kept",
        f"`workers`: 1 to {synchronous.MAX_WORKERS:,} or",
        f"`size`: 1 to {buffered.MAX_SIZE:,} |",
        f"`bound`: 1 to {bounded.MAX_BOUND:,} |",
        f"`lease_s` ({base.LEASE_S:.0f}), `patience_s` (null: {base.PATIENCE_LEASES} leases)",
        f"answered after {Settings.model_fields['push_wait_s'].default:.0f} s at the latest",
        f"`wait_s` seconds ({parameters.MAX_WAIT_S:.0f} at most)",
        f"2 to {reading.MOST_POINTS}, by default {reading.DEFAULT_POINTS}",
        f"the first {steps.BURST} steps of a model, then {steps.KEPT_PER_S:.0f} a second",
        f"less than {steps.MEASURING_SHARE * 100:g} % of the time",
        f"more than 2^{norms.EXACT_ELEMENTS.bit_length() - 1} elements",
        f"the last {ring.RING_ENTRIES} events",
        f"A comment comes every {listeners.HEARTBEAT_S:.0f} s",
        f"unread, up to {staging.WAIT_S:.0f} s, or {staging.LONGEST_WAIT_S:.0f} s while others",
        f"from {parameters.ACCOUNTED_BYTES >> 20} MiB on, until they have left",
        f"A TLS handshake and a header have {deadlines.HEADER_S:.0f} s each",
        f"it comes at {deadlines.LEAST_BODY_BYTES_PER_S >> 10} KiB/s at least, over "
        f"{deadlines.BODY_WINDOW_S:.0f} s, and has {deadlines.BODY_S:.0f} s and a second more for "
        f"each {'MiB' if deadlines.BODY_BYTES_PER_S == 1 << 20 else '?'} in all",
        f"taken at {drain.LEAST_BYTES_PER_S >> 10} KiB/s at least, over {drain.WINDOW_S:.0f} s",
        f"less than {drain.FAIR_BYTES_PER_S >> 20} MiB/s for more than {drain.FAIR_AFTER_S:.0f} s",
        f"`known` (repeated, {memory.MAX_KNOWN} at most)",
    ]
    assert not [sentence for sentence in sentences if sentence not in said]
    assert deadlines.TLS_HANDSHAKE_S == deadlines.HEADER_S
    assert connection.MAX_HELD == 4, "the page says four"
