"""Tokens: their form, what is kept of them, and who is let in while files change."""

import errno
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from stepwell_core.errors import DataFolderInvalid
from stepwell_server import tokens
from stepwell_server.storage import disk
from stepwell_server.storage.folders import DataFolder
from stepwell_server.tokens import Authenticator, TokenStore


@pytest.fixture
def store(tmp_path):
    """The tokens of an empty data folder."""
    return TokenStore(tmp_path)


@pytest.mark.parametrize("role", tokens.ROLES)
def test_a_token_has_the_role_it_was_made_for(store, role):
    """The role is in the token and in the record."""
    token = store.create(role)

    assert token.startswith(f"sw_{role}_")
    assert Authenticator(store).role_of(token) == role


def test_only_the_hash_of_a_token_is_kept_and_only_its_owner_may_read_that(store):
    """Who steals the file has no token."""
    token = store.create("admin")
    secret = token.rpartition("_")[2]

    assert secret not in store.path.read_text()
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert [path.name for path in store.path.parent.iterdir()] == [tokens.TOKENS_FILE]


def test_a_token_that_is_nearly_right_is_not_valid(store):
    """One digit, another role, or an id without its secret: nothing."""
    token = store.create("read")
    authenticator = Authenticator(store)
    other_digit = token[:-1] + ("0" if token[-1] != "0" else "1")

    for wrong in (other_digit, token.replace("read", "admin"), token[:17], token + "0", "", "é"):
        assert authenticator.role_of(wrong) is None


def test_a_token_that_is_revoked_is_refused_at_once_and_the_server_stays_closed(store):
    """Revoking the last token does not open the server to everyone."""
    token = store.create("push")
    authenticator = Authenticator(store)
    assert authenticator.role_of(token) == "push"

    assert store.revoke(token.split("_")[2])

    assert authenticator.role_of(token) is None
    assert not authenticator.is_open


def test_a_server_without_any_token_is_open_until_the_first_is_made(store):
    """Loopback works out of the box; the first token closes it, without a restart."""
    authenticator = Authenticator(store)
    assert authenticator.is_open

    store.create("admin")

    assert not authenticator.is_open


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"tokens": [{"id": "1"}]}',
        '{"tokens": [{"id": "1", "role": "owner", "sha256": "' + "0" * 64 + '"}]}',
        '{"tokens": [{"id": "1", "role": "read", "sha256": "\\u00e9"}]}',
    ],
)
def test_a_damaged_token_file_refuses_the_start_and_closes_a_running_server(store, content):
    """Whoever could be let in before is not, until the file is whole again."""
    running = Authenticator(store)
    assert running.is_open
    store.path.write_text(content)

    assert not running.is_open
    assert running.role_of(tokens.new_token("admin")) is None
    with pytest.raises(DataFolderInvalid, match=r"tokens\.json cannot be read"):
        Authenticator(store)


def test_a_token_file_is_read_again_when_it_changes(store, tmp_path):
    """Rotation: the new secret is known, the old one is not."""
    old, new = tokens.new_token("push"), tokens.new_token("read")
    path = tmp_path / "secret"
    path.write_text(f"# made by hand\n\n{old}\n")
    authenticator = Authenticator(store, path)
    assert authenticator.role_of(old) == "push"

    path.write_text(f"{new}\n{tokens.new_token('read')}\n")

    assert authenticator.role_of(old) is None
    assert authenticator.role_of(new) == "read"


@pytest.mark.parametrize("content", ["", "# nothing\n", "sw_admin_1_2\n"])
def test_a_token_file_without_tokens_is_refused(store, tmp_path, content):
    """An empty secret does not mean an open server."""
    path = tmp_path / "secret"
    path.write_text(content)

    with pytest.raises(DataFolderInvalid):
        Authenticator(store, path)


def test_revoking_what_does_not_exist_changes_nothing(store):
    """The list is as it was."""
    store.create("read")
    before = json.loads(store.path.read_text())

    assert not store.revoke("00000000")
    assert json.loads(store.path.read_text()) == before


def test_tokens_that_are_made_at_the_same_time_are_all_valid(store):
    """Each was printed, and cannot be shown again."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(store.create, ["push"] * 24))

    authenticator = Authenticator(store)
    assert {authenticator.role_of(token) for token in made} == {"push"}


def test_no_token_is_put_into_another_programs_folder(tmp_path):
    """Nor is one taken from there: a folder with a wrong name is told."""
    (tmp_path / "theirs").write_text("x")
    store = TokenStore(tmp_path)

    with pytest.raises(DataFolderInvalid, match="not Stepwell's"):
        store.create("push")
    with pytest.raises(DataFolderInvalid, match="not Stepwell's"):
        store.revoke("00000000")

    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_what_a_killed_command_left_makes_no_other_programs_folder(tmp_path):
    """A server starts in it, and takes it away."""
    disk.temporary_beside(tmp_path / "tokens.json").write_text("{")
    token = TokenStore(tmp_path).create("admin")

    DataFolder(tmp_path).release()

    assert Authenticator(TokenStore(tmp_path)).role_of(token) == "admin"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(disk.TEMPORARY)]


def test_a_folder_that_cannot_be_is_a_sentence_and_is_not_made(tmp_path):
    """A file, and one that is not there when a token is to be revoked."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(DataFolderInvalid, match="Tokens cannot be written in"):
        TokenStore(tmp_path / "file" / "data").create("push")
    with pytest.raises(DataFolderInvalid, match="Tokens cannot be written in"):
        TokenStore(tmp_path / "none").revoke("00000000")

    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_a_sentence_and_keeps_the_tokens(store, monkeypatch):
    """No token is printed that is not valid."""
    token = store.create("admin")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.system, "pwrite", full)
    with pytest.raises(DataFolderInvalid, match="No space left on device"):
        store.create("push")

    assert Authenticator(store).role_of(token) == "admin"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_a_token_that_root_makes_is_the_servers(store):
    """Or the server, another user, would refuse every token from then on."""
    os.chown(store.path.parent, 65534, 65534)

    store.create("admin")

    assert (store.path.stat().st_uid, stat.S_IMODE(store.path.stat().st_mode)) == (65534, 0o600)
