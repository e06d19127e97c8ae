"""What a command says of settings that cannot be: which, what was received, what it may be."""

from __future__ import annotations

import pytest
import typer
from stepwell_server.cli_settings import load_settings, misspelt
from stepwell_server.settings import Settings


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
    ("name", "meant"),
    [
        ("STEPWELL_PROT", "STEPWELL_PORT"),
        ("STEPWELL_CONFG", "STEPWELL_CONFIG"),
        ("STEPWELL_TOKNE", "STEPWELL_TOKEN"),
        ("STEPWELL_TOKENS_FILE", "STEPWELL_TOKEN_FILE"),
        ("STEPWELL_DATADIR", "STEPWELL_DATA_DIR"),
        ("STEPWELL_CACHEDIR", "STEPWELL_CACHE_DIR"),
        ("STEPWELL_URLS", "STEPWELL_URL"),
    ],
)
def test_what_was_meant_is_told(name, meant):
    """Also of those that are no settings: without STEPWELL_CONFIG a whole file has no effect."""
    (sentence,) = misspelt([name], Settings.model_fields)

    assert sentence == f"{name} is no setting and has no effect (did you mean {meant!r}?)"


@pytest.mark.parametrize(
    "name",
    [
        *(f"STEPWELL_{name}" for name in ("TOKEN", "URL", "PORT", "CONFIG", "CACHE_DIR")),
        *(f"STEPWELL_{name}" for name in ("PUBLISHED_PORT", "TLS_PORT", "TLS_NAMES", "IMAGE")),
        *(f"STEPWELL_{name}" for name in ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP")),
        *(f"STEPWELL_PORT_8700_TCP{end}" for end in ("", "_ADDR", "_PORT", "_PROTO")),
        *(f"STEPWELL_DATA_{name}" for name in ("PORT", "SERVICE_HOST", "PORT_80_TCP_ADDR")),
        "PATH",
    ],
)
def test_variables_of_others_are_not_settings(name):
    """Of clients, of compose, of Kubernetes, of the shell."""
    assert misspelt([name], Settings.model_fields) == []


def test_a_port_of_kubernetes_is_ignored_and_told(capsys, monkeypatch, tmp_path):
    """A Service that is called `stepwell`, as most are, stopped the server."""
    monkeypatch.setenv("STEPWELL_PORT", "tcp://10.0.0.1:8700")
    (tmp_path / "c.toml").write_text("port = 9000\n")

    assert load_settings(None).port == 8700
    assert load_settings(tmp_path / "c.toml").port == 9000
    assert load_settings(tmp_path / "c.toml", port=9001).port == 9001

    assert capsys.readouterr().err.splitlines()[0] == (
        "stepwell: STEPWELL_PORT is 'tcp://10.0.0.1:8700', which Kubernetes says of a Service that "
        "is called stepwell, and is ignored; `enableServiceLinks: false` in the pod keeps it away"
    )
