"""What `GET /metrics` says: every number of `tallies.py` and of the models, for Prometheus.

Reading is two steps. `Reading.of` copies numbers on the event loop, waiting for no lane: a scrape
is answered also while a step takes seconds. `exposition` then makes the text, in a thread. A model
that is deleted is not in the next reading, so its series end. docs/metrics.md has the names; a test
holds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from stepwell_server import __version__
from stepwell_server.counts import Counts
from stepwell_server.model import HostedModel
from stepwell_server.staging import Staging
from stepwell_server.tallies import Histogram, RequestTally


@dataclass(frozen=True)
class ModelReading:
    """The numbers of one model at one moment; see docs/metrics.md."""

    name: str
    version: int
    nbytes: int
    open_sessions: int
    outcomes: Mapping[str, int]
    apply_s: Histogram
    staleness: Histogram
    disagreements: int
    received_bytes: int
    pulls: int
    journal_bytes: int
    is_read_only: bool
    checkpoint_s: Histogram
    checkpoint_failures: int
    checkpoint_age_s: float | None

    @classmethod
    def of(cls, model: HostedModel) -> ModelReading:
        """Read a model; O(sessions). On the event loop."""
        engine, tally, checkpoints = model.engine, model.pushes.tally, model.checkpoints
        # The lane may change both at this very moment: each is copied in one operation.
        outcomes, sessions = tally.outcomes.copy(), list(engine.ledger.sessions.values())
        outcomes["duplicate"] = tally.duplicates
        return cls(
            name=model.definition.name,
            version=engine.counters.version,
            nbytes=engine.layout.nbytes,
            open_sessions=sum(session.is_open for session in sessions),
            outcomes=outcomes,
            apply_s=tally.apply_s.copy(),
            staleness=tally.staleness.copy(),
            disagreements=tally.disagreements,
            received_bytes=tally.received_bytes,
            pulls=tally.pulls,
            journal_bytes=model.recorder.nbytes,
            is_read_only=model.recorder.failure is not None,
            checkpoint_s=checkpoints.tally.seconds.copy(),
            checkpoint_failures=checkpoints.tally.failures,
            checkpoint_age_s=checkpoints.saved_age_s,
        )


@dataclass(frozen=True, eq=False)
class Reading(Collector):
    """The numbers of a server at one moment."""

    models: tuple[ModelReading, ...]
    request_s: Mapping[tuple[str, str, int], Histogram]
    counts: Mapping[str, int]
    staging_used: int
    staging_idle: int
    staging_budget: int

    @classmethod
    def of(
        cls, models: Iterable[HostedModel], requests: RequestTally, counts: Counts, staging: Staging
    ) -> Reading:
        """Read a server. On the event loop."""
        return cls(
            models=tuple(ModelReading.of(model) for model in models),
            request_s={key: histogram.copy() for key, histogram in requests.seconds.items()},
            counts=asdict(counts),
            staging_used=staging.used_bytes,
            staging_idle=staging.idle_bytes,
            staging_budget=staging.budget_bytes,
        )

    def collect(self) -> Iterator[Metric]:
        """Yield all as the library wants it; on any thread."""
        yield InfoMetricFamily("stepwell_build", "Of this server.", {"version": __version__})
        yield from self._pushes()
        yield from self._models()
        yield from self._checkpoints()
        yield from self._memory()
        yield from self._requests()

    def _pushes(self) -> Iterator[Metric]:
        pushes = CounterMetricFamily(
            "stepwell_pushes", "Pushes that were settled.", labels=["model", "outcome"]
        )
        for model in self.models:
            for outcome, count in sorted(model.outcomes.items()):
                pushes.add_metric([model.name, outcome], count)
        yield pushes
        yield self._histograms(
            "stepwell_push_apply_seconds",
            "Seconds that making a step took.",
            {(m.name,): m.apply_s for m in self.models},
        )
        yield self._histograms(
            "stepwell_staleness_versions",
            "Versions between that of a gradient and its step.",
            {(m.name,): m.staleness for m in self.models},
        )
        yield self._counter(
            "stepwell_hyperparameter_disagreements",
            "Steps of several pushes that came with different values of a hyperparameter.",
            {m.name: m.disagreements for m in self.models},
        )
        yield self._counter(
            "stepwell_push_received_bytes",
            "Payloads of pushes, over the wire or in memory.",
            {m.name: m.received_bytes for m in self.models},
        )
        yield self._counter(
            "stepwell_pulls",
            "Pulls that held a version.",
            {m.name: m.pulls for m in self.models},
        )

    def _models(self) -> Iterator[Metric]:
        yield self._gauge(
            "stepwell_model_version",
            "Changes of a model so far.",
            {m.name: m.version for m in self.models},
        )
        yield self._gauge(
            "stepwell_model_bytes",
            "Parameters of a model.",
            {m.name: m.nbytes for m in self.models},
        )
        yield self._gauge(
            "stepwell_open_sessions",
            "Sessions of workers that are open.",
            {m.name: m.open_sessions for m in self.models},
        )
        yield self._gauge(
            "stepwell_model_read_only",
            "1 since a disk failed, else 0.",
            {m.name: m.is_read_only for m in self.models},
        )

    def _checkpoints(self) -> Iterator[Metric]:
        yield self._gauge(
            "stepwell_journal_bytes",
            "Journal of a model.",
            {m.name: m.journal_bytes for m in self.models},
        )
        ages = {m.name: m.checkpoint_age_s for m in self.models}
        yield self._gauge(
            "stepwell_checkpoint_age_seconds",
            "Age of the newest whole checkpoint.",
            {name: age for name, age in ages.items() if age is not None},
        )
        yield self._histograms(
            "stepwell_checkpoint_seconds",
            "Seconds that a checkpoint took to be written and read back.",
            {(m.name,): m.checkpoint_s for m in self.models},
        )
        yield self._counter(
            "stepwell_checkpoint_failures",
            "Checkpoints that could not be written.",
            {m.name: m.checkpoint_failures for m in self.models},
        )

    def _memory(self) -> Iterator[Metric]:
        yield self._gauge(
            "stepwell_staging_bytes",
            "Memory for payloads on their way.",
            {"used": self.staging_used, "idle": self.staging_idle},
            "state",
        )
        yield GaugeMetricFamily(
            "stepwell_staging_budget_bytes", "How much there may be.", self.staging_budget
        )
        yield self._counter(
            "stepwell_cuts",
            "Connections, bodies and readers that were given up.",
            self.counts,
            "reason",
        )

    def _requests(self) -> Iterator[Metric]:
        answers = CounterMetricFamily(
            "stepwell_http_requests", "Requests that ended.", labels=["method", "route", "status"]
        )
        by_route: dict[tuple[str, ...], Histogram] = {}
        for (method, route, status), histogram in sorted(self.request_s.items()):
            answers.add_metric([method, route, str(status)], histogram.count)
            by_route.setdefault((method, route), Histogram(histogram.bounds)).add(histogram)
        yield answers
        yield self._histograms(
            "stepwell_http_request_duration_seconds",
            "Seconds from a request's header to the last byte of its answer.",
            by_route,
            ("method", "route"),
        )

    @staticmethod
    def _counter(
        name: str, help_text: str, values: Mapping[str, float], label: str = "model"
    ) -> Metric:
        family = CounterMetricFamily(name, help_text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    @staticmethod
    def _gauge(
        name: str, help_text: str, values: Mapping[str, float], label: str = "model"
    ) -> Metric:
        family = GaugeMetricFamily(name, help_text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        return family

    @staticmethod
    def _histograms(
        name: str,
        help_text: str,
        values: Mapping[tuple[str, ...], Histogram],
        labels: tuple[str, ...] = ("model",),
    ) -> Metric:
        family = HistogramMetricFamily(name, help_text, labels=labels)
        for key, histogram in values.items():
            family.add_metric(key, _buckets(histogram), histogram.sum)
        return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return upper bounds and how many values lay below each, as Prometheus counts."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    total, buckets = 0, []
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def exposition(reading: Reading, accept: str) -> tuple[bytes, str]:
    """Return a reading, and what is known of the process, as text; and its media type.

    Args:
        reading: Of the server.
        accept: Of the request: OpenMetrics where it is asked for, else Prometheus's own format.
    """
    registry = CollectorRegistry()
    for collector in (reading, PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(collector)
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type
