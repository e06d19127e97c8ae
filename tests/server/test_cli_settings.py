"""What a command says of settings that cannot be: which, what was received, what it may be."""

from __future__ import annotations

import pytest
import typer
from stepwell_server.cli_settings import load_settings, misspelt


def refusal(capsys, config=None, **flags):
    """Load settings that cannot be; return what is said."""
    with pytest.raises(typer.Exit) as refused:
        load_settings(config, **flags)
    assert refused.value.exit_code == 2
    return capsys.readouterr().err


def test_a_value_that_cannot_be_is_shown_with_its_rule(capsys, monkeypatch):
    """Whether it is a flag or a variable; both are told at once."""
    monkeypatch.setenv("STEPWELL_PORT", "many")

    said = refusal(capsys, durability="alway").splitlines()

    assert sorted(said) == [
        "stepwell: durability: Input should be 'memory', 'everysec' or 'always'. Received: 'alway'",
        "stepwell: port: Input should be a valid integer, unable to parse string as an integer. "
        "Received: 'many'",
    ]


@pytest.mark.parametrize("url", ["http://me:secret@127.0.0.1:4318", "me:secret@127.0.0.1"])
def test_a_password_of_a_collector_is_refused_and_not_shown(capsys, monkeypatch, url):
    """The log names the URL at each start."""
    monkeypatch.setenv("STEPWELL_TRACES_ENDPOINT", url)

    said = refusal(capsys)

    assert "traces_endpoint" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("prot", " (did you mean 'port'?)"),
        ("colour", ""),
        ("data_dri", " (did you mean 'data_dir'?)"),
    ],
)
def test_an_unknown_key_of_a_file_has_a_suggestion(capsys, tmp_path, key, suggestion):
    """Unless nothing is like it."""
    (tmp_path / "c.toml").write_text(f"{key} = 1\n")

    said = refusal(capsys, tmp_path / "c.toml")

    assert said == f"stepwell: There is no setting {key!r}{suggestion}; see docs/settings.md\n"


def test_a_misspelt_variable_is_told_and_the_server_starts(capsys, monkeypatch):
    """It has no effect, which nobody would notice before the first crash."""
    monkeypatch.setenv("STEPWELL_DURABILTY", "always")

    assert load_settings(None).durability == "everysec"

    assert capsys.readouterr().err == (
        "stepwell: STEPWELL_DURABILTY is no setting and has no effect (did you mean "
        "'STEPWELL_DURABILITY'?)\n"
    )


@pytest.mark.parametrize(
    "name", ["STEPWELL_TOKEN", "STEPWELL_URL", "STEPWELL_PUBLISHED_PORT", "STEPWELL_PORT", "PATH"]
)
def test_variables_of_others_are_not_settings(name):
    """Of clients, of compose, of the shell."""
    assert misspelt([name], ["port", "token_file", "durability"]) == []
