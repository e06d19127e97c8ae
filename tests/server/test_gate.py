"""The gate: default deny, for every route, method and role, and for what does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from stepwell_server import gate
from stepwell_server.gate import PUBLIC, ROLE_OF_ROUTE
from stepwell_server.tokens import ROLES, TokenStore

from tests import servers
from tests.server.calls import assert_problem

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE")
EXAMPLES = {
    "{model}": "nobody",
    "{name:path}": "dense/kernel",
    "{worker}": "w0",
    "{sequence}": "0",
    "{checkpoint}": "000001-v0",
    "{file}": "manifest.json",
}


def example(path: str) -> str:
    """Return a path that the template matches."""
    for place, value in EXAMPLES.items():
        path = path.replace(place, value)
    return path


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A server with a token of each role, and a client of it for each and for none."""
    data_dir = tmp_path_factory.mktemp("closed")
    store = TokenStore(data_dir)
    tokens = {role: store.create(role) for role in ROLES}
    with servers.hosted(data_dir, allowed_hosts=("trainer.example",)) as server:
        clients = {role: servers.http(server.url, token) for role, token in tokens.items()}
        clients[""] = servers.http(server.url)
        yield server, clients
        for client in clients.values():
            client.close()


def routes_of(application) -> set[tuple[str, str]]:
    """Return method and template of every route, whatever FastAPI nests it in."""
    found = set()
    pending = list(application.api.routes)
    while pending:
        route = pending.pop()
        if hasattr(route, "methods") and hasattr(route, "path"):
            found |= {(method, route.path) for method in route.methods - {"HEAD"}}
        else:
            inner = getattr(route, "original_router", None) or getattr(route, "routes", [])
            pending += getattr(inner, "routes", inner)
    return found


def test_the_table_of_roles_has_exactly_the_routes_of_the_application(closed):
    """A route that is added without a role is seen here (and needs admin until then)."""
    server, _ = closed

    assert routes_of(server.application) == set(ROLE_OF_ROUTE) | {("GET", path) for path in PUBLIC}


def test_the_documentation_has_exactly_the_table_of_roles():
    """docs/roles.md says what the gate does."""
    rows = re.findall(
        r"^\| ([A-Z]+) \| `(.*)` \| (\w+) \|$", (ROOT / "docs/roles.md").read_text(), re.M
    )

    documented = {(method, path): role for method, path, role in rows}

    assert documented == {**ROLE_OF_ROUTE, **{("GET", path): "public" for path in PUBLIC}}


@pytest.mark.parametrize("method", METHODS)
def test_without_a_token_every_path_is_401_whether_it_exists_or_not(closed, method):
    """A stranger learns nothing, not even which models there are."""
    _, clients = closed
    paths = {example(path) for _, path in ROLE_OF_ROUTE} | {
        "/none",
        "/docs",
        "/v1/none",
        "/metrics",
    }

    answers = [clients[""].request(method, path) for path in sorted(paths)]

    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", METHODS)
def test_every_role_is_refused_exactly_what_the_table_refuses_it(closed, method, role):
    """Walk all paths with all methods: 403 where the role is too small, and nowhere else."""
    _, clients = closed
    for path in {path for _, path in ROLE_OF_ROUTE}:
        table = {m: needed for (m, p), needed in ROLE_OF_ROUTE.items() if p == path}
        needed = table.get("GET" if method == "HEAD" else method, "admin")

        answer = clients[role].request(method, example(path))

        is_refused = ROLES.index(role) < ROLES.index(needed)
        assert (answer.status_code == 403) is is_refused, (method, path, answer.text)
        assert answer.status_code not in (401, 500)


def test_a_wrong_token_is_401_like_none(closed):
    """The body is the same, so that nothing can be learnt by trying."""
    _, clients = closed
    wrong = ["Bearer sw_admin_00000000_" + "0" * 64, "Basic YTpi", "Bearer", "sw_admin"]

    answers = [clients[""].get("/v1", headers={"Authorization": value}) for value in wrong]

    expected = clients[""].get("/v1")
    assert {(a.status_code, a.content) for a in answers} == {(401, expected.content)}


def test_health_is_public_and_nothing_else_is(closed):
    """A container's health check needs no secret."""
    _, clients = closed

    assert clients[""].get("/healthz").status_code == 200
    assert clients[""].get("/readyz").status_code == 200
    assert clients[""].get("/healthz/").status_code == 401
    assert clients[""].post("/healthz").status_code == 401


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost:8700",
        "LOCALHOST",
        "[::1]:8700",
        "10.1.2.3:80",
        "Trainer.Example:8700",
    ],
)
def test_a_host_that_is_an_address_or_allowed_is_answered(closed, host):
    """Names are compared without case and port."""
    _, clients = closed

    assert clients["read"].get("/v1", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "[", "", "a:b:c", "127.0.0.1.evil"]
)
def test_another_host_name_is_refused(closed, host):
    """A web page cannot rebind its own name to this server and read the answer."""
    _, clients = closed

    answer = clients["admin"].get("/healthz", headers={"Host": host})

    assert_problem(answer, 403, "forbidden")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "http://[::1", "http://127.0.0.1:1"]
)
def test_a_foreign_origin_is_refused(closed, origin):
    """A web page cannot call this server, whatever its Origin header looks like."""
    _, clients = closed

    answer = clients["admin"].get("/v1", headers={"Origin": origin})

    assert_problem(answer, 403, "forbidden")


def test_a_page_of_this_server_may_call_it(closed):
    """Its Origin is the Host."""
    server, clients = closed

    assert clients["read"].get("/v1", headers={"Origin": server.url}).status_code == 200


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_a_browser_may_send_unasked_is_415(closed, media_type):
    """JSON and msgpack make a browser ask first, and we give no permission."""
    _, clients = closed

    answer = clients["admin"].post(
        "/v1/models", content=b"{}", headers={"Content-Type": media_type}
    )

    assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_an_encoded_body_is_415(closed, encoding):
    """A few bytes cannot become gigabytes here."""
    _, clients = closed
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}

    answer = clients["admin"].post("/v1/models", content=b"{}", headers=headers)

    assert_problem(answer, 415, "unsupported_media_type")
    assert clients["read"].get("/v1", headers={"Content-Encoding": "Identity"}).status_code == 200


def test_what_is_not_in_the_table_needs_admin():
    """Default deny also inside."""
    assert gate.role_needed("GET", "/v1/secret") == "admin"
    assert gate.role_needed("PURGE", "/v1") == "admin"
    assert gate.role_needed("GET", "/v1/models/a/b") == "admin"
    assert gate.role_needed("HEAD", "/v1/models") == "read"


def test_a_token_file_that_breaks_tells_strangers_nothing(tmp_path):
    """They get 401 as before, without the file's path; the log has it."""
    store = TokenStore(tmp_path)
    token = store.create("admin")
    with servers.hosted(tmp_path) as server, servers.http(server.url, token) as client:
        assert client.get("/v1").status_code == 200
        store.path.write_text("{")

        answer = client.get("/v1")

    assert_problem(answer, 401, "unauthenticated")
    assert str(tmp_path) not in answer.text


@pytest.mark.parametrize("name", ["Authorization", "Content-Type", "Origin"])
def test_a_header_that_decides_may_come_once(closed, name):
    """Whoever reads the first of two and whoever reads the last would decide about two requests."""
    _, clients = closed
    url = clients["admin"].base_url
    usual = {"Host": f"{url.host}:{url.port}", "Authorization": "Bearer none"}
    headers = [*usual.items(), (name, usual.get(name, "x")), (name, usual.get(name, "x"))]

    answer = clients[""].send(httpx.Request("GET", f"{url}/v1", headers=headers))

    assert_problem(answer, 400, "malformed_message")
