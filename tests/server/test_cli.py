"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from stepwell_server import __version__
from stepwell_server.cli import app


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
    wrong = run("token", "create", "--role", "boss", *folder)

    assert re.fullmatch(rf"sw_admin_{token_id}_[0-9a-f]{{64}}", token)
    assert token not in (tmp_path / "tokens.json").read_text()
    assert (revoked.returncode, again.returncode) == (0, 1)
    assert "there is no token" in again.stderr
    assert (wrong.returncode, "Value error" in wrong.stderr) == (2, False)
    assert "'boss' is not one of 'read', 'push', 'admin'" in wrong.stderr


def test_tokens_are_those_of_the_folder_that_the_server_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`STEPWELL_DATA_DIR` names it to both; a folder that is not there has no empty list."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPWELL_DATA_DIR", str(tmp_path / "data"))

    missing = run("token", "list")
    made = run("token", "create")

    assert (missing.returncode, missing.stdout) == (1, "")
    assert str(tmp_path / "data") in missing.stderr
    assert made.returncode == 0
    assert (tmp_path / "data" / "tokens.json").exists()


def leaves(command: Any, path: str = "stepwell") -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with what is typed for it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, f"{path} {name}")


def test_the_documentation_names_every_command() -> None:
    """docs/cli.md; a row may name several, the first of them in full."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
    named = set()
    for cell in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE):
        group = ""
        for words in (part.split() for part in re.findall(r"`([^`]*)`", cell)):
            words = [word for word in words if re.fullmatch("[a-z-]+", word)]
            if words[0] == "stepwell":
                named.add(" ".join(words))
                group = " ".join(words[:-1])
            else:
                named.add(f"{group} {words[0]}")

    assert {path for path, _ in leaves(typer.main.get_command(app))} <= named


def test_every_command_answers_in_json() -> None:
    """But for those that run until they are stopped; they log."""
    without = {
        path
        for path, command in leaves(typer.main.get_command(app))
        if not any("--json" in option.opts for option in command.params)
    }

    assert without == {"stepwell serve", "stepwell demo-worker"}
