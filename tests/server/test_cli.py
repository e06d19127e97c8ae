"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stepwell_server import __version__


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `stepwell` to its end."""
    command = [sys.executable, "-m", "stepwell", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_says_its_version() -> None:
    """Alone on stdout."""
    finished = run("--version")

    assert (finished.returncode, finished.stdout.strip()) == (0, __version__)


@pytest.mark.parametrize("arguments", [(), ("token",)])
def test_a_command_that_was_given_nothing_shows_its_help(arguments: tuple[str, ...]) -> None:
    """What there is, and status 2, since nothing was done."""
    finished = run(*arguments)

    assert finished.returncode == 2
    assert finished.stderr.startswith("Usage: ")


@pytest.mark.parametrize("arguments", [("serve", "--port", "x"), ("demo", "--mode", "gossip")])
def test_a_wrong_option_is_named(arguments: tuple[str, ...]) -> None:
    """One sentence, status 2."""
    finished = run(*arguments)

    assert finished.returncode == 2
    assert finished.stderr.startswith("stepwell: ")
    assert arguments[1] in finished.stderr


def test_help_shows_the_defaults() -> None:
    """They stand in brackets, which must not be taken for markup."""
    finished = run("serve", "--help")

    assert "[8700]" in finished.stdout
    assert "[stepwell-data]" in finished.stdout


def test_a_token_is_made_listed_and_revoked(tmp_path: Path) -> None:
    """It is shown once; afterwards there is only its id."""
    folder = ("--data-dir", str(tmp_path))

    token = run("token", "create", "--role", "admin", *folder).stdout.strip()
    listed = json.loads(run("token", "list", "--json", *folder).stdout)
    token_id = listed["tokens"][0]["id"]
    revoked = run("token", "revoke", token_id, *folder)
    again = run("token", "revoke", token_id, *folder)

    assert re.fullmatch(rf"sw_admin_{token_id}_[0-9a-f]{{64}}", token)
    assert token not in (tmp_path / "tokens.json").read_text()
    assert (revoked.returncode, again.returncode) == (0, 1)
    assert "there is no token" in again.stderr
