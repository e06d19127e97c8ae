"""`GET /metrics`: what Prometheus is told, beside what was really done."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse
from stepwell_core.errors import Unavailable
from stepwell_server.tallies import STALENESS

from tests.server.calls import LAYOUT, Worker, create, new_name, packed, pull

ROOT = Path(__file__).resolve().parents[3]
Labels = tuple[tuple[str, str], ...]


class Scrape:
    """The samples of one scrape, by name and labels."""

    def __init__(self, http: httpx.Client) -> None:
        answer = http.get("/metrics")
        assert answer.status_code == 200, answer.text
        self.families = list(parse(answer.text))
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return one sample; None if there is none."""
        return self.samples.get((name, tuple(sorted(labels.items()))))

    def of_model(self, model: str) -> set[str]:
        """Return the names of the samples that a model has."""
        return {name for name, labels in self.samples if ("model", model) in labels}


def test_steps_whose_workers_disagree_about_a_hyperparameter_are_counted(http, pool):
    """The first worker's value counts, and nobody else would see that the others' did not."""
    optimizer = {"class_name": "SGD", "config": {"learning_rate": {"class_name": "PerPush"}}}
    mode = {"mode": "sync", "workers": 2}
    path = create(http, name := new_name(), optimizer=optimizer, consistency=mode)
    workers = [Worker(http, path, worker) for worker in ("a", "b")]
    counted = []

    for rates in ((0.5, 0.5), (0.5, 0.25)):
        said = [{"learning_rate": rate} for rate in rates]
        waits = pool.submit(workers[0].push, hyperparameters=said[0])
        workers[1].push(hyperparameters=said[1])
        waits.result()
        counted.append(Scrape(http)("stepwell_hyperparameter_disagreements_total", model=name))

    assert counted == [0, 1]
    assert pull(http, path)["bias"].tolist() == [0.0] * 4


def test_pushes_are_counted_by_what_became_of_them(http):
    """Each once, a repetition as such, a refused one not at all."""
    path = create(http, name := new_name(), on_nonfinite="drop")
    worker = Worker(http, path)
    worker.push()
    worker.push()
    worker.push(float("nan"))
    worker.sequence -= 1
    assert worker.try_push(float("nan")).json()["duplicate"]
    assert worker.send(b"\xc1").status_code == 400

    scrape = Scrape(http)

    assert scrape("stepwell_pushes_total", model=name, outcome="applied") == 2
    assert scrape("stepwell_pushes_total", model=name, outcome="skipped_nonfinite") == 1
    assert scrape("stepwell_pushes_total", model=name, outcome="duplicate") == 1
    assert scrape("stepwell_push_apply_seconds_count", model=name) == 2
    assert 0 < scrape("stepwell_push_apply_seconds_sum", model=name) < 60
    assert scrape("stepwell_push_received_bytes_total", model=name) == 3 * LAYOUT.nbytes
    assert scrape("stepwell_model_version", model=name) == 2


def test_staleness_is_a_histogram_of_versions(http):
    """A bucket has what is at most its bound."""
    path = create(http, name := new_name())
    fast, slow = Worker(http, path, "fast"), Worker(http, path, "slow")
    for version in range(3):
        fast.push(version=version)
    slow.push(version=0)

    scrape = Scrape(http)

    buckets = {
        bound: scrape("stepwell_staleness_versions_bucket", model=name, le=f"{float(bound)}")
        for bound in STALENESS
    }
    assert [buckets[0], buckets[2], buckets[4]] == [3, 3, 4]
    assert scrape("stepwell_staleness_versions_sum", model=name) == 3
    assert scrape("stepwell_staleness_versions_bucket", model=name, le="+Inf") == 4


def test_pulls_sessions_journal_and_checkpoints_are_told(http):
    """What each gauge and counter says is what was done."""
    path = create(http, name := new_name())
    Worker(http, path, "leaves")
    worker = Worker(http, path, "stays")
    http.delete(f"{path}/workers/leaves")
    worker.push()
    pull(http, path)
    before = Scrape(http)
    assert http.post(f"{path}/checkpoints").status_code == 201

    scrape = Scrape(http)

    assert scrape("stepwell_pulls_total", model=name) == 1
    assert scrape("stepwell_open_sessions", model=name) == 1
    assert scrape("stepwell_model_bytes", model=name) == LAYOUT.nbytes
    assert scrape("stepwell_model_read_only", model=name) == 0
    assert before("stepwell_journal_bytes", model=name) > 0
    assert before("stepwell_checkpoint_seconds_count", model=name) == 0
    assert scrape("stepwell_checkpoint_seconds_count", model=name) == 1
    assert scrape("stepwell_checkpoint_failures_total", model=name) == 0
    assert 0 <= scrape("stepwell_checkpoint_age_seconds", model=name) < 60


def test_a_checkpoint_that_fails_is_counted(server, http, monkeypatch):
    """As a failure, and in no bucket."""
    path = create(http, name := new_name())
    archive = server.application.registry.get(name).folder.archive
    monkeypatch.setattr(type(archive), "write", _fail)
    assert http.post(f"{path}/checkpoints").status_code == 503

    scrape = Scrape(http)

    assert scrape("stepwell_checkpoint_failures_total", model=name) == 1
    assert scrape("stepwell_checkpoint_seconds_count", model=name) == 0


def _fail(*arguments: object, **options: object) -> None:
    raise Unavailable("the test says so")


def test_a_deleted_model_loses_its_series(http):
    """Whoever makes and deletes models for ever does not make the answer grow for ever."""
    path = create(http, name := new_name())
    Worker(http, path).push()
    assert Scrape(http).of_model(name)

    assert http.delete(path).status_code == 204

    assert Scrape(http).of_model(name) == set()


def test_requests_are_counted_by_the_template_of_their_route(http):
    """Names of models and workers are in no label; also for the calls that bypass FastAPI."""
    path = create(http, new_name())
    worker = Worker(http, path)
    before = Scrape(http)
    worker.push()
    pull(http, path)
    assert http.get(f"{path}/workers").status_code == 200
    assert http.get(f"{path}-not").status_code == 404

    scrape = Scrape(http)

    def new(method: str, route: str, status: str) -> float:
        labels = {"method": method, "route": route, "status": status}
        name = "stepwell_http_requests_total"
        return scrape(name, **labels) - (before(name, **labels) or 0)

    assert new("POST", "/v1/models/{model}/gradients", "200") == 1
    assert new("GET", "/v1/models/{model}/parameters", "200") == 1
    assert new("GET", "/v1/models/{model}/workers", "200") == 1
    assert new("GET", "/v1/models/{model}", "404") == 1
    assert new("GET", "/metrics", "200") == 1  # `before` itself, which had not ended
    name = "stepwell_http_request_duration_seconds_count"
    assert scrape(name, method="POST", route="/v1/models/{model}/gradients") >= 1


def test_strangers_cannot_make_series(http):
    """Paths that are not there and methods that nobody knows share one name each."""
    before = len(Scrape(http).samples)
    for number in range(20):
        http.get(f"/no/such/path/{number}")
        http.request("PROPFIND", f"/v1/models/{number}")
        http.get("/healthz", headers={"Host": f"evil-{number}.example"})

    scrape = Scrape(http)

    labels = {"method": "GET", "route": "unmatched"}
    assert scrape("stepwell_http_requests_total", status="404", **labels) >= 20
    assert scrape("stepwell_http_requests_total", status="403", **labels) >= 20
    methods = {dict(found).get("method") for _, found in scrape.samples}
    assert "PROPFIND" not in methods
    assert len(scrape.samples) - before < 3 * 25


def test_the_server_and_its_process_are_told(http):
    """Budget, build, CPU and memory, under the names that dashboards know."""
    scrape = Scrape(http)

    assert scrape("stepwell_staging_budget_bytes") > 0
    assert scrape("stepwell_staging_bytes", state="used") == 0
    assert scrape("stepwell_cuts_total", reason="bodies_cut") is not None
    assert scrape("process_cpu_seconds_total") > 0
    assert scrape("process_resident_memory_bytes") > 1 << 20


def test_openmetrics_is_spoken_to_who_asks_for_it(http):
    """With its media type, its names and its end; a strict parser takes it."""
    create(http, new_name())
    answer = http.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert "stepwell_pushes" in {family.name for family in parse_openmetrics(answer.text)}


def test_a_scrape_waits_for_no_lane(server, http):
    """Prometheus is answered also while a step, or a disk, takes long."""
    create(http, name := new_name())
    model = server.application.registry.get(name)
    go, begun = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        go.wait(30)

    model._loop.call_soon_threadsafe(model._lane.submit, block)
    assert begun.wait(30)
    try:
        assert Scrape(http)("stepwell_model_version", model=name) == 0
    finally:
        go.set()


DOCUMENTED = re.compile(r"^\| `(stepwell_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)


def test_the_documentation_has_exactly_the_metrics_there_are(http):
    """Name, kind and labels of each: docs/metrics.md."""
    path = create(http, new_name())
    Worker(http, path).push()
    documented = {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in DOCUMENTED.findall((ROOT / "docs/metrics.md").read_text())
    }

    exported = {}
    for family in Scrape(http).families:
        if family.name.startswith("stepwell_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            total = "_total" if family.type == "counter" else ""
            exported[family.name + total] = (family.type, frozenset(labels))

    assert documented == exported


@pytest.mark.parametrize("body", [b"", packed({"protocol": 1})])
def test_metrics_are_read_and_not_written(http, body):
    """A POST is no scrape."""
    answer = http.post("/metrics", content=body, headers={"Content-Type": "application/msgpack"})

    assert answer.status_code == 405
