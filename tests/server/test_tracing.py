"""Traces, received by a collector on loopback that reads what OpenTelemetry's exporter sends."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError
from stepwell_server import tracing
from stepwell_server.settings import Settings

from tests import servers
from tests.server.calls import Worker, create, pull

pytest.importorskip(
    "opentelemetry.instrumentation.asgi", reason="the extra `otel` is not installed"
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Those of whoever runs the tests are not those of the tests."""
    for name in tracing.ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@dataclass
class Collector:
    """Takes spans over OTLP/HTTP.

    Attributes:
        url: Where it listens.
        resources: What the spans' servers said of themselves.
        spans: In the order in which they ended.
    """

    url: str = ""
    resources: list[dict[str, str]] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = resource_spans.resource.attributes
            self.resources.append({a.key: a.value.string_value for a in attributes})
            for scope_spans in resource_spans.scope_spans:
                self.spans += scope_spans.spans


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that runs."""
    received = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        received.url = f"http://127.0.0.1:{listener.server_port}"
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        yield received
        listener.shutdown()
        thread.join()


def test_each_request_is_a_span_named_by_its_route(tmp_path, collector):
    """Also a call that bypasses FastAPI, as a child of the caller's span; but no health check."""
    with (
        servers.hosted(tmp_path, traces_endpoint=collector.url) as server,
        servers.http(server.url) as client,
    ):
        path = create(client, "m")
        worker = Worker(client, path)
        client.headers["traceparent"] = f"00-{TRACE}-{PARENT}-01"
        worker.push()
        del client.headers["traceparent"]
        pull(client, path)
        client.get("/healthz")
        client.get("/metrics")
        client.get("/no/such/path")

    assert [span.name for span in collector.spans] == [
        "POST /v1/models",
        "POST /v1/models/{model}/workers",
        "POST /v1/models/{model}/gradients",
        "GET /v1/models/{model}/parameters",
        "GET unmatched",
    ]
    push = collector.spans[2]
    assert (push.trace_id.hex(), push.parent_span_id.hex()) == (TRACE, PARENT)
    assert push.end_time_unix_nano > push.start_time_unix_nano
    assert {resource["service.name"] for resource in collector.resources} == {"stepwell"}


def test_opentelemetrys_own_variables_are_enough(tmp_path, collector, monkeypatch):
    """A server in a cluster is told as everything else there is."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "training")
    with servers.hosted(tmp_path) as server, servers.http(server.url) as client:
        client.get("/v1")

    assert [span.name for span in collector.spans] == ["GET /v1"]
    assert collector.resources[0]["service.name"] == "training"


def test_without_an_endpoint_nothing_is_traced():
    """Nor is OpenTelemetry imported."""
    assert tracing.begin(Settings.load()) is None


def test_a_collector_that_is_away_stops_no_request_and_no_server(tmp_path, monkeypatch):
    """Its spans are lost, and that is all."""
    monkeypatch.setattr(tracing, "STOP_S", 0.1)
    with (
        servers.hosted(tmp_path, traces_endpoint="http://127.0.0.1:9") as server,
        servers.http(server.url) as client,
    ):
        worker = Worker(client, create(client, "m"))

        assert worker.push()["outcome"] == "applied"


def test_without_the_extra_the_setting_is_refused_and_the_variable_is_not(monkeypatch):
    """Whoever asked for traces is told; a variable may be meant for others."""
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation", None)
    with pytest.raises(tracing.NotInstalled, match=r'pip install "stepwell\[otel\]"'):
        tracing.begin(Settings.load(traces_endpoint="http://127.0.0.1:4318"))

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")

    assert tracing.begin(Settings.load()) is None


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", ""])
def test_an_endpoint_is_a_url(endpoint):
    """A misspelt one is refused at the start, not lost in a thread."""
    with pytest.raises(ValidationError, match="traces_endpoint"):
        Settings.load(traces_endpoint=endpoint)
