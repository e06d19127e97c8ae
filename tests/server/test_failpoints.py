"""A named place that is misspelled, or is in no source any more, kills nothing: that is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import stepwell_server
from stepwell_server import failpoints


def test_the_places_in_the_sources_are_those_that_are_listed():
    """None is left out, none is left over."""
    sources = Path(stepwell_server.__file__).parent.rglob("*.py")
    found = {
        name
        for path in sources
        for name in re.findall(r'failpoints\.reach\("([^"]+)"\)', path.read_text())
    }

    assert found == failpoints.NAMES


def test_a_place_that_does_not_exist_ends_the_server_before_it_begins():
    """With a sentence that names those that there are."""
    command = [sys.executable, "-c", "from stepwell_server import failpoints"]
    environment = {**os.environ, failpoints.VARIABLE: "no.such.place:3"}

    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 1
    assert "journal.appended" in ended.stderr
    assert "Received: no.such.place" in ended.stderr
