"""Traces of requests for OpenTelemetry: the extra `otel`, and only where somebody asks for them.

A request is one span, named by its route, and a child of the caller's span if it sends a
`traceparent`. Spans go to a collector over OTLP/HTTP, in batches, from a thread of their own: a
collector that is away costs spans and no request. Everything beside the address is OpenTelemetry's
own and is told by its variables: the sampler, the service's name, headers for the collector.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import structlog
from starlette.types import ASGIApp
from stepwell_core.errors import StepwellError

from stepwell_server import __version__
from stepwell_server.gate import route_template
from stepwell_server.settings import Settings
from stepwell_server.traffic import UNMATCHED

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = structlog.get_logger("stepwell")

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The field's own names for where a collector is."""

NOT_TRACED = "/healthz$,/readyz$,/metrics$"
"""What is asked every few seconds by machines that no trace belongs to."""


STOP_S = 2.0
"""For the last spans, when a server stops; the exporter itself would try for 10 s."""


class NotInstalled(StepwellError):
    """A setting needs packages that are not there."""

    code = "not_installed"


class Tracing:
    """Where the spans of one server go.

    Args:
        provider: Makes them; ended by `stop`.
        exporter: Its own; sends them.
    """

    def __init__(self, provider: TracerProvider, exporter: SpanExporter) -> None:
        self._provider = provider
        self._exporter = exporter

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return an application whose requests are spans."""
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.metrics import NoOpMeterProvider

        return OpenTelemetryMiddleware(
            app,
            excluded_urls=NOT_TRACED,
            default_span_details=_details,
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),  # `GET /metrics` has them
            exclude_spans=["receive", "send"],  # two spans a piece of a body say nothing
        )

    def stop(self) -> None:
        """Send what is left and end; blocks, for little more than `STOP_S`."""
        giving_up = threading.Timer(STOP_S, self._exporter.shutdown)
        giving_up.start()
        try:
            self._provider.shutdown()
        finally:
            giving_up.cancel()


def begin(settings: Settings) -> Tracing | None:
    """Return where spans go; None if nobody asks for any.

    Raises:
        NotInstalled: The setting asks for them, and the extra is not installed.
    """
    has_variable = any(os.environ.get(name) for name in ENDPOINT_VARIABLES)
    if settings.traces_endpoint is None and not has_variable:
        return None
    try:
        return _tracing(settings.traces_endpoint)
    except ImportError as error:
        missing = (
            f"Traces need packages that are not installed ({error.name}): "
            'pip install "stepwell[otel]"'
        )
        if settings.traces_endpoint is not None:
            raise NotInstalled(missing) from None
        # A cluster may set the variable for everyone in it, so that is no reason not to start.
        log.warning("no_traces", advice=missing)
        return None


def _tracing(endpoint: str | None) -> Tracing:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation import asgi  # noqa: F401, what is missing is missed here
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    url = None if endpoint is None else endpoint.rstrip("/") + "/v1/traces"
    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", "stepwell"),
            "service.version": __version__,
            "service.instance.id": secrets.token_hex(8),
        }
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=url)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    log.info("traces", endpoint=url or "by OpenTelemetry's variables")
    return Tracing(provider, exporter)


def _details(scope: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a span's name and what it is about, before it is known who answers."""
    method = str(scope["method"])
    route = route_template(method, str(scope["path"]))
    if route is None:
        return f"{method} {UNMATCHED}", {}
    return f"{method} {route}", {"http.route": route}
