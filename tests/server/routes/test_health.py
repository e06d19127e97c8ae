"""Is it alive, is it ready, what does it speak?"""

import stepwell_core.wire as wire


def test_a_running_server_is_alive_and_ready(http):
    """Health is public and short."""
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json()["status"] == "ready"


def test_the_server_says_its_protocol_limits_and_features(http):
    """`GET /v1` is how a client recognizes an old server."""
    about = http.get("/v1").json()

    assert about["protocol"] == wire.PROTOCOL
    assert about["durability"] == "everysec"
    assert about["limits"]["max_header_bytes"] == 256 * 1024
    assert set(about["features"]["consistency"]) == {
        "async",
        "sync",
        "quorum",
        "buffered",
        "bounded",
    }
    assert {"SGD", "Adagrad", "Adam"} <= set(about["features"]["optimizers"])


def test_a_server_that_stops_is_not_ready(http, server):
    """A load balancer sends nothing more to a server that has begun to stop."""
    server.application.api.state.is_ready = False
    try:
        answer = http.get("/readyz")
    finally:
        server.application.api.state.is_ready = True

    assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})


def test_openapi_lists_every_route(http):
    """The machine-readable description is ours alone; no page loads anything from elsewhere."""
    paths = http.get("/openapi.json").json()["paths"]

    assert "/v1/models/{model}/gradients" in paths
    assert http.get("/docs").status_code == 404
