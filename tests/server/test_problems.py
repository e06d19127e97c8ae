"""Problem documents: each error has a status, a code and a sentence; none tells a secret."""

import json

import pytest
from stepwell_core import errors
from stepwell_server import __version__, problems

from tests.server.calls import PROBLEM, Worker, assert_problem, create

EXPECTED = {
    "invalid_input": 422,
    "shape_mismatch": 422,
    "nonfinite_gradient": 422,
    "malformed_message": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "model_not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "body_too_slow": 408,
    "fenced": 409,
    "sequence_gap": 409,
    "stale_incarnation": 409,
    "precondition_failed": 412,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "shutting_down": 503,
    "versions_exhausted": 503,
    "does_not_fit": 507,
    "checkpoint_invalid": 500,
    "internal_error": 500,
}


def core_errors():
    """Return the classes of the core's tree; other modules may add their own."""
    return [error for error in errors.every_error() if error.__module__ == errors.__name__]


@pytest.mark.parametrize("error", core_errors(), ids=lambda error: error.code)
def test_every_error_is_a_problem_document_of_its_own_code(error):
    """RFC 9457: type, title, status and detail, and beside them a code for programs."""
    response = problems.problem(error("What was wrong.", received=3, status="no"))

    document = json.loads(response.body)
    assert response.headers["content-type"] == PROBLEM
    assert document == {
        "type": f"urn:stepwell:problem:{error.code}",
        "title": document["title"],
        "status": response.status_code,
        "detail": "What was wrong.",
        "code": error.code,
        "received": 3,
    }
    assert document["title"]
    assert 400 <= response.status_code < 600


def test_statuses_are_those_that_the_documentation_of_http_would_make_one_expect():
    """A change here is a change of the protocol."""
    by_code = errors.by_code()

    found = {code: problems.status_of(by_code[code]) for code in EXPECTED}

    assert found == EXPECTED


def test_only_the_roots_own_status_is_inherited_from_the_root():
    """A new branch of the tree is given a status on purpose, in the table."""
    branches = [error for error in core_errors() if error.__bases__ == (errors.StepwellError,)]

    assert [error.code for error in branches if error not in problems.STATUS] == []


def test_a_503_says_when_to_come_again_and_a_401_says_how_to_authenticate():
    """The headers that these statuses ask for."""
    assert problems.problem(errors.ShuttingDown("x")).headers["retry-after"] == "1"
    assert problems.problem(errors.Unauthenticated("x")).headers["www-authenticate"] == "Bearer"


def test_a_path_and_a_method_that_do_not_exist_are_problems_too(http):
    """What the routing itself says is translated; 405 says what is allowed."""
    assert_problem(http.get("/v2"), 404, "route_not_found")
    answer, page = http.put("/v1/models"), http.post("/")

    document = assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"  # which two routes have
    assert document["detail"] == "/v1/models takes GET, POST. Received: PUT"
    assert_problem(page, 405, "method_not_allowed")
    assert "GET" in page.headers["allow"]


def test_a_query_that_breaks_a_rule_names_the_field_and_not_the_value(http):
    """What was sent may be long, or a secret."""
    path = create(http)

    answer = http.get(f"{path}/workers/w/pushes/0", params={"epoch": "-77777", "wait_s": 0})

    document = assert_problem(answer, 422, "invalid_input")
    assert document["fields"][0]["field"] == "query.epoch"
    assert "77777" not in answer.text


def test_a_number_that_breaks_a_rule_is_shown_and_text_is_not(http):
    """Text may be a secret that was put into the wrong place."""
    path = create(http)
    worker = Worker(http, path)

    number = assert_problem(worker.try_push(weight=-1.5), 422, "invalid_input")
    text = assert_problem(worker.try_push(weight="sw_admin_secret"), 422, "invalid_input")

    assert "weight: Input should be greater than 0. Received: -1.5" in number["detail"]
    assert "weight: Input should be a valid number" in text["detail"]
    assert "secret" not in str(text)


def test_a_field_that_is_not_known_tells_the_servers_version(http):
    """A newer client says more than an older server understands."""
    worker = Worker(http, create(http))

    document = assert_problem(worker.try_push(from_the_future=1), 422, "invalid_input")

    assert f"from_the_future: Stepwell {__version__}" in document["detail"]
    assert "is the client newer?" in document["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/parameters/w?min_version=3"),
        ("POST", "/checkpoints?pinned=true"),
        ("DELETE", "/workers/w0?epcoh=7"),
        ("GET", "/workers/w0/pushes/0?epoch=0&wait=20"),
        ("GET", "?fields=name"),
        ("GET", "/parameters?wait=3"),
    ],
)
def test_a_query_that_a_route_does_not_know_is_refused_with_nothing_done(http, method, path):
    """Else what a caller relies on is left out without a word: a pin, an epoch, a version."""
    worker = Worker(http, create(http))

    answer = http.request(method, worker.path + path)

    document = assert_problem(answer, 422, "invalid_input")
    name = path.partition("?")[2].rpartition("&")[2].partition("=")[0]
    assert document["fields"][0]["field"].endswith(name)
    assert f"{name}: Stepwell {__version__}" in document["detail"]
    assert http.get(f"{worker.path}/workers").json()["workers"][0]["is_open"]
    assert len(http.get(f"{worker.path}/checkpoints").json()["checkpoints"]) == 1


def test_a_bug_is_500_without_its_trace(http, server, monkeypatch):
    """The log has the trace; the caller gets a sentence."""

    def broken(name):
        raise ZeroDivisionError("secret 4711")

    monkeypatch.setattr(server.application.registry, "get", broken)

    answer = http.get("/v1/models/m")

    assert_problem(answer, 500, "internal_error")
    assert "4711" not in answer.text
    assert "ZeroDivision" not in answer.text
