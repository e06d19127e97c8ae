"""Settings: where they come from, what is refused, and that each is documented."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from stepwell_server.cli import app
from stepwell_server.settings import Settings

from tests import servers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """Settings of whoever runs the tests are not those of the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"STEPWELL_{name.upper()}", raising=False)


@pytest.fixture
def config(tmp_path):
    """A settings file with every kind of value."""
    path = tmp_path / "stepwell.toml"
    path.write_text('port = 1\nlog_level = "debug"\nallowed_hosts = ["a", "b"]\nhost = "::1"\n')
    return path


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    config, monkeypatch
):
    """Each setting comes from the first source that has it."""
    monkeypatch.setenv("STEPWELL_PORT", "2")
    monkeypatch.setenv("STEPWELL_LOG_LEVEL", "error")

    settings = Settings.load(config, port=3, log_level=None)

    assert settings.port == 3
    assert settings.log_level == "error"
    assert settings.host == "::1"
    assert settings.push_wait_s == 20.0


def test_allowed_hosts_are_a_list_in_the_file_and_have_commas_in_the_environment(
    config, monkeypatch
):
    """Nobody has to write JSON into a variable."""
    from_file = Settings.load(config)
    monkeypatch.setenv("STEPWELL_ALLOWED_HOSTS", "server, trainer.local,")
    from_environment = Settings.load()

    assert from_file.allowed_hosts == ("a", "b")
    assert from_environment.allowed_hosts == ("server", "trainer.local")


def test_an_unknown_key_in_the_file_is_refused(tmp_path):
    """A misspelt setting is an error and not a default."""
    path = tmp_path / "stepwell.toml"
    path.write_text("prot = 1\n")

    with pytest.raises(ValidationError, match="prot"):
        Settings.load(path)


@pytest.mark.parametrize("content", [b"host =", b"port = 1\nport = 2", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    """The parser knows its text alone."""
    path = tmp_path / "stepwell.toml"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"{path} is no TOML"):
        Settings.load(path)


@pytest.mark.parametrize("name", ["uds", "data_dir", "token_file", "memory_socket", "host"])
def test_an_empty_variable_is_no_value(monkeypatch, name):
    """As a path it would be the current folder; a compose file makes such a one quickly."""
    monkeypatch.setenv(f"STEPWELL_{name.upper()}", "")

    with pytest.raises(ValidationError, match="is empty"):
        Settings.load()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """The defaults are not used in its place."""
    with pytest.raises(FileNotFoundError, match=r"none\.toml"):
        Settings.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("port", -1),
        ("push_wait_s", -0.1),
        ("max_body_bytes", 0),
        ("log_level", "loud"),
        ("tls_key", "key.pem"),
    ],
)
def test_a_value_out_of_range_is_refused(name, value):
    """Also a key without a certificate, with which the server would speak plain HTTP."""
    with pytest.raises(ValidationError, match=name):
        Settings.load(**{name: value})


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_loopback_addresses_are_told_from_others(host, is_loopback):
    """A name that is not known counts as reachable by others."""
    assert Settings.load(host=host).is_loopback is is_loopback
    assert Settings.load(host=host, uds="socket").is_loopback


def test_every_setting_has_its_row_in_the_documentation():
    """Name, default, flag and variable in docs/settings.md are those of the code."""
    serve = next(
        command for command in app.registered_commands if command.callback.__name__ == "serve"
    )
    given = {"allowed_host" if name == "allowed_hosts" else name for name in Settings.model_fields}
    flags = given & set(serve.callback.__annotations__)
    expected = []
    for name, field in Settings.model_fields.items():
        default = field.default
        flag = "allowed-host" if name == "allowed_hosts" else name.replace("_", "-")
        expected.append(
            (
                f"`{name}`",
                f"`{default}`" if default not in (None, ()) else "none",
                f"`--{flag}`" if flag.replace("-", "_") in flags else "",
                f"`STEPWELL_{name.upper()}`",
            )
        )

    rows = re.findall(r"^\| (`.*) \|$", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    documented = [tuple(cell.strip() for cell in row.split("|")[:4]) for row in rows]

    assert documented == expected


def test_the_command_refuses_a_durability_with_a_sentence_and_exit_code_2(tmp_path):
    """No trace, no folder, one line that says what to use."""
    server = servers.start(tmp_path / "data", "--durability", "sometimes")

    code = server.wait()

    assert code == 2
    assert "'memory', 'everysec' or 'always'" in server.events[0]["event"]
    assert len(server.events) == 1
    assert not (tmp_path / "data").exists()
