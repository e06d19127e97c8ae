"""The dashboard's page and files: public, strict, cached by their hash, and nothing beside them."""

from __future__ import annotations

import gzip
import re

import httpx
import pytest
from stepwell_server.dashboard import shared_files

from tests import servers
from tests.server.calls import assert_problem


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A client without a token, of a server that has tokens."""
    data_dir = tmp_path_factory.mktemp("closed")
    with (
        servers.hosted(data_dir, token_file=_token_file(data_dir.parent)) as server,
        servers.http(server.url) as client,
    ):
        yield client


def _token_file(folder):
    file = folder / "dashboard-tokens"
    file.write_text("sw_read_00000000_" + "0" * 64)
    file.chmod(0o600)
    return file


OF_THE_MOMENT = {"date"}
"""Headers that are others in each answer."""


def address(name: str) -> str:
    """Return where a file of the page is."""
    return f"/dashboard/{shared_files().version}/{name}"


def assert_is_strict(answer: httpx.Response) -> None:
    """Nothing inline, nothing from elsewhere, in no frame."""
    policy = answer.headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == directives["frame-ancestors"] == "'none'"
    for name in ("script-src", "style-src", "connect-src"):
        assert directives[name] == "'self'"
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_page_is_public_and_strict(stranger):
    """It holds no data: what it shows it asks for with a token."""
    page = stranger.get("/")

    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assert_is_strict(page)


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(stranger):
    """What the policy would stop is not there to begin with."""
    text = stranger.get("/").text

    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", text)
    for target in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert target.startswith(("/", "#"))
        assert not target.startswith("//")


def test_every_file_is_public_strict_and_kept_for_ever(stranger):
    """plotly.js too; and each as the type that it is, or a browser would not run it."""
    names = shared_files().names
    assert {"app.js", "style.css", "plotly.min.js"} <= names
    for name in names:
        answer = stranger.get(address(name))

        assert answer.status_code == 200, name
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"
        expected = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        assert answer.headers["content-type"].startswith(expected[name.rpartition(".")[2]])
        assert_is_strict(answer)


def test_modules_and_the_page_name_only_files_that_there_are(stranger):
    """An import that was misspelt would be seen by a browser alone."""
    names = shared_files().names
    for name in sorted(names - {"plotly.min.js"}):
        for imported in re.findall(r'from "\./([^"]+)"', stranger.get(address(name)).text):
            assert imported in names, (name, imported)
    for target in re.findall(r'"(/dashboard/[^"]+)"', stranger.get("/").text):
        assert stranger.get(target).status_code == 200, target


def test_who_takes_no_gzip_gets_the_same_bytes(stranger):
    """As curl does by itself."""
    plain = stranger.get(address("app.js"), headers={"Accept-Encoding": "identity"})

    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"
    assert plain.content == gzip.decompress(
        shared_files().find(shared_files().version, "app.js").packed
    )


@pytest.mark.parametrize(
    "name",
    ["none.js", "%2e%2e", "__init__.py", "files.py", "index.html", "..%5cfiles.py", "app.js%00"],
)
def test_what_is_no_file_of_the_page_is_404(stranger, name):
    """A name is looked up, never opened: there is no way out of the folder."""
    raw = stranger.build_request("GET", "/")
    raw.url = raw.url.copy_with(raw_path=address(name).encode())

    assert_problem(stranger.send(raw), 404, "not_found")


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard", "/dashboard/", "/dashboard/x", "/dashboard/x/", "/dashboard/x/../../v1",
        "/dashboard/x/y/z", "/dashboard/x/..%2fv1", "//", "/index.html", "/dashboards/x/y",
    ],
)  # fmt: skip
def test_nothing_beside_the_page_became_public(stranger, path):
    """Two parts behind `/dashboard/`, and no more."""
    raw = stranger.build_request("GET", "/")
    raw.url = raw.url.copy_with(raw_path=path.encode())

    assert stranger.send(raw).status_code == 401


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
@pytest.mark.parametrize("name", ["", "app.js", "plotly.min.js"])
def test_head_is_get_without_a_body(stranger, name, encoding):
    """Watchdogs and proxies ask so; it is as public, as strict, and as long as it says."""
    path, headers = address(name) if name else "/", {"Accept-Encoding": encoding}

    head, got = (stranger.request(method, path, headers=headers) for method in ("HEAD", "GET"))

    assert (head.status_code, head.content) == (200, b"")
    told = [
        {name: value for name, value in answer.headers.items() if name not in OF_THE_MOMENT}
        for answer in (head, got)
    ]
    assert told[0] == told[1]
    assert "content-length" in told[0]
    assert_is_strict(head)


def test_head_of_what_is_no_file_of_the_page_is_404(stranger):
    """As GET is."""
    assert stranger.head(address("none.js")).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/dashboard/x/app.js"])
def test_only_looking_is_public(stranger, method, path):
    """Everything else is as if it were not there."""
    assert stranger.request(method, path).status_code == 401


def test_a_file_of_another_version_is_404(stranger):
    """So modules of two versions never run together; the page itself is always the newest."""
    problem = assert_problem(stranger.get("/dashboard/0123456789abcdef/app.js"), 404, "not_found")

    assert "Load the page again" in problem["detail"]


def test_a_foreign_host_name_gets_no_page_either(stranger):
    """A page that rebinds its own name to us would read what ours keeps."""
    assert stranger.get("/", headers={"Host": "evil.example"}).status_code == 403


def test_the_server_says_which_role_a_caller_has(http):
    """So that a page shows no buttons that would fail; an open server has admins alone."""
    assert http.get("/v1").json()["role"] == "admin"
