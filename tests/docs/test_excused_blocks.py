"""Blocks that no test runs are read at least: what they name is there, and says what it should."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import typer
import yaml
from stepwell_server.cli import app
from stepwell_server.cli_settings import EXIT_USAGE
from stepwell_server.settings import Settings

from benchmarks.__main__ import SUITES
from tests.docs.blocks import ROOT, Block, blocks, pages

EXCUSED = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}:{block.line}")
    for page in pages()
    for block in blocks(page.read_text())
    if block.excuse
]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROFILES = {name for each in COMPOSE["services"].values() for name in each.get("profiles", ())}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def of(language: str) -> list[Any]:
    """The excused blocks in a language."""
    return [each for each in EXCUSED if each.values[0].language == language]


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a shell's block as words, without what is set before them."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in ("export", "&")):
            words = words[1:]
        if words:
            yield words


@pytest.mark.parametrize("block", EXCUSED)
def test_a_test_that_an_excuse_names_is_there(block: Block) -> None:
    """What is said to be run elsewhere is."""
    named = re.findall(r"\b(?:tests|docs)/[\w/.-]+\w", block.excuse)

    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("block", of("sh"))
def test_commands_that_are_not_run_exist(block: Block) -> None:
    """Programs of ours, their options, files, targets, extras, profiles and suites."""
    read = subprocess.run(["bash", "-n"], input=block.code, text=True, capture_output=True)
    assert read.returncode == 0, read.stderr

    for words in commands(block.code):
        program = words[0].removeprefix(".venv/bin/")
        if program == "stepwell":
            check_our_command(words[1:])
        elif program == "make":
            check_target(words[1:])
        elif program == "python" and words[1] == "-m" and words[2].startswith("benchmarks"):
            assert (ROOT / (words[2].replace(".", "/") + ".py")).exists()
        elif program == "docker-compose":
            check_compose(words[1:])
        elif program.startswith("docker/"):
            assert (ROOT / program).exists()
        for extra in re.findall(r"(?:stepwell|\.)\[(\w[\w-]*)\]", " ".join(words)):
            assert extra in EXTRAS
        for path in re.findall(r"(?<![\w/$])(?:examples|docker)/[\w./-]+", " ".join(words)):
            assert (ROOT / path).exists() or "/secrets/" in path, path


def check_our_command(words: list[str]) -> None:
    """Find the command below `stepwell`, and its options among those that it has."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}

    assert not hasattr(command, "commands"), f"no such command: {words}"
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known


def check_target(words: list[str]) -> None:
    """A target of the Makefile, and suites that there are."""
    assert words[0] in TARGETS
    for suite in (word.removeprefix("ARGS=") for word in words[1:]):
        assert suite in SUITES


def check_compose(words: list[str]) -> None:
    """Profiles and services that docker-compose.yml has."""
    profiles = [after for word, after in pairwise(words) if word == "--profile"]
    assert set(profiles) <= PROFILES
    if "up" in words:
        named = [word for word in words[words.index("up") + 1 :] if not word.startswith("-")]
        assert set(named) <= set(COMPOSE["services"])


@pytest.mark.parametrize("block", of("toml"))
def test_a_settings_file_is_taken(block: Block, tmp_path, monkeypatch) -> None:
    """By the very class that reads it, with every value as it stands there."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"STEPWELL_{name.upper()}", raising=False)
    file = tmp_path / "stepwell.toml"
    file.write_text(block.code)

    settings = Settings.load(file)

    said = tomllib.loads(block.code)
    assert {name: _plain(getattr(settings, name)) for name in said} == said


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value if value is None else str(value)


@pytest.mark.parametrize("block", of("yaml"))
def test_prometheus_is_told_what_the_profile_tells_it(block: Block) -> None:
    """Which a real Prometheus takes; only the comments differ."""
    profile = yaml.safe_load((ROOT / "docker/observability/prometheus.yml").read_text())

    assert yaml.safe_load(block.code)["scrape_configs"] == profile["scrape_configs"]


@pytest.mark.parametrize("block", of("ini"))
def test_the_unit_starts_a_server_with_options_that_it_has(block: Block) -> None:
    """It is started anew unless a setting cannot be, and has longer for a stop than requests do."""
    unit = dict(line.split("=", 1) for line in block.code.splitlines() if "=" in line)

    check_our_command(unit["ExecStart"].split()[1:])
    assert int(unit["RestartPreventExitStatus"]) == EXIT_USAGE
    assert int(unit["TimeoutStopSec"]) > Settings.model_fields["shutdown_grace_s"].default


@pytest.mark.parametrize("block", of("r"))
def test_functions_of_r_are_those_of_the_example(block: Block) -> None:
    """All but R's own."""
    (path,) = re.findall(r'source\("(.*)"\)', block.code)
    defined = re.findall(r"^(\w+) <- function", (ROOT / path).read_text(), re.MULTILINE)

    called = set(re.findall(r"\b(\w+)\(", block.code))

    assert called - {"source", "list", "matrix", "attr"} <= set(defined)


@pytest.mark.parametrize("block", of("python"))
def test_python_that_is_not_run_can_be_read(block: Block) -> None:
    """It compiles."""
    compile(block.code, "page", "exec")
