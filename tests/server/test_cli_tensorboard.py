"""`stepwell export tensorboard`: what is in the history is in the event file, and nothing else."""

from __future__ import annotations

import builtins
import errno
import json
import struct
import sys

import numpy as np
import pytest
import stepwell
from stepwell.history import ModelHistory, Series
from stepwell_server import cli, cli_tensorboard
from stepwell_server.cli_tensorboard import EventFile, tag_of

from tests import servers
from tests.requirements import require_package

STEPS = 25


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server."""
    with servers.hosted(tmp_path_factory.mktemp("data")) as server:
        yield server.url


@pytest.fixture
def model(url, request):
    """A model with some steps and a metric behind it."""
    name = f"m{abs(hash(request.node.name)) % 10**9}"
    with stepwell.Client(url) as client:
        made = client.create_model(name, {"w": np.zeros(3, np.float32)}, optimizer="adam")
        train(made)
        yield made


@pytest.fixture
def run(url, monkeypatch, capsys):
    """Run the command in this process; returns its exit code and what it printed."""

    def run(*arguments):
        command = ["stepwell", "export", "tensorboard", *map(str, arguments), "--url", url]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        return cli.main(), *capsys.readouterr()

    return run


def train(model):
    """Make some steps."""
    with model.worker("w0") as worker:
        worker.pull()
        for step in range(STEPS):
            worker.push({"w": np.ones(3, np.float32)}, metrics={"loss": 1 / (step + 1)})


def scalars(folder):
    """Return (version, value) by tag, in the order of the file: TFRecords of `Event` messages."""
    event_pb2 = require_package("tensorboardX.proto.event_pb2")
    (path,) = folder.iterdir()
    content, at, found = path.read_bytes(), 0, {}
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
        at += 12 + length + 4
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def in_history(model, name):
    """Return the same of a series in the history."""
    series = model.history().series[name]
    return list(zip(series.version.tolist(), np.float32(series.value).tolist(), strict=True))


def test_every_series_is_there_over_the_versions(run, model, tmp_path):
    """Metrics in one group, what the server knows in another."""
    code, out, err = run(model.name, tmp_path / "logs", "--json")

    found = scalars(tmp_path / "logs" / model.name)
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert found["metrics/loss"] == in_history(model, "metrics.loss")
    assert found["step/learning_rate"] == in_history(model, "learning_rate")
    assert found["step/gradient_norm"] == in_history(model, "gradient_norm")
    assert len(found["metrics/loss"]) == STEPS
    assert told["version"] == STEPS
    assert told["values"] == sum(map(len, found.values()))


def test_a_long_history_comes_in_parts_and_nothing_twice(model, tmp_path, monkeypatch):
    """A part is not thinned out, and what comes later is appended."""
    monkeypatch.setattr(cli_tensorboard, "MOST_VERSIONS", 7)

    events = EventFile(tmp_path)
    events.write(model)
    first = events.version
    train(model)
    events.write(model)
    events.write(model)
    events.close()

    assert (first, events.version) == (STEPS, 2 * STEPS)
    assert scalars(tmp_path)["metrics/loss"] == in_history(model, "metrics.loss")


def test_what_is_written_is_on_the_disk_before_the_file_is_closed(model, tmp_path):
    """Who follows a model sees its newest step, and loses none if the command is killed."""
    with EventFile(tmp_path) as events:
        events.write(model)
        found = scalars(tmp_path)

    assert len(found["metrics/loss"]) == STEPS


def test_a_model_that_went_back_is_followed_on(model, tmp_path):
    """As after a crash: versions that were written are made again, and nothing is left out."""
    lives = iter(("first", "second", "second"))
    with EventFile(tmp_path) as events:
        for versions in ([1, 2, 3], [2], [2, 3]):
            events.write(Life(next(lives), versions))

    assert [version for version, _ in scalars(tmp_path)["metrics/loss"]] == [1, 2, 3, 2, 3]


class Life:
    """A model whose history has the first life's three versions, then those of the second."""

    def __init__(self, incarnation, versions):
        times = [float(version) for version in versions]
        self.incarnation = incarnation
        self.rows = list(zip(versions, times, strict=True))
        if incarnation == "second":
            self.rows = [(1, 1.0), (2, 2.0), (3, 3.0), *((v, t + 10) for v, t in self.rows)]

    def describe(self):
        """Return what is asked for."""
        return {"version": self.rows[-1][0], "incarnation": self.incarnation}

    def history(self, first, last, since, points):
        """Return what the server would."""
        rows = [(v, t) for v, t in self.rows if first <= v <= last and t >= (since or 0)]
        versions, times = (np.array(column) for column in zip(*rows, strict=True))
        series = {"metrics.loss": Series(versions, times, times)} if rows else {}
        return ModelHistory(series, (), 0, 0)


def test_metrics_with_almost_the_same_name_stay_two(run, model, tmp_path):
    """tensorboardX would give both the tag `metrics/a_b`."""
    with model.worker("w1") as worker:
        worker.pull()
        worker.push({"w": np.ones(3, np.float32)}, metrics={"a b": 1.0, "a_b": 2.0})

    run(model.name, tmp_path)

    found = scalars(tmp_path / model.name)
    assert found["metrics/a b"] == [(STEPS + 1, 1.0)]
    assert found["metrics/a_b"] == [(STEPS + 1, 2.0)]


@pytest.mark.parametrize("call", ["write", "flush"])
def test_a_full_disk_is_one_sentence_and_leaves_no_file(run, model, tmp_path, monkeypatch, call):
    """It does not wait for ever, and the next export may use the folder."""
    writer = require_package("tensorboardX.record_writer").RecordWriter

    def full(self, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, call, full)
        code, out, err = run(model.name, tmp_path)
    again = run(model.name, tmp_path)[0]

    assert (code, out, again) == (1, "", 0)
    assert "No space left on device" in err
    assert str(tmp_path / model.name) in err


def test_an_export_that_is_interrupted_leaves_no_file(model, tmp_path):
    """Half of a history would be taken for all of it."""
    with pytest.raises(KeyboardInterrupt), EventFile(tmp_path):
        raise KeyboardInterrupt

    assert list(tmp_path.iterdir()) == []


def test_an_export_adds_to_no_other(run, model, tmp_path):
    """TensorBoard would show both as one."""
    run(model.name, tmp_path)
    before = scalars(tmp_path / model.name)

    code, out, err = run(model.name, tmp_path)

    assert (code, out) == (1, "")
    assert "has event files already" in err
    assert scalars(tmp_path / model.name) == before


def test_what_cannot_be_is_one_sentence_and_leaves_nothing(run, tmp_path):
    """A model that is not there, and a folder that is a file."""
    code, _, err = run("no-such-model", tmp_path / "logs")
    (tmp_path / "file").write_text("x")

    assert (code, "no-such-model" in err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file_is_refused(run, model, tmp_path):
    """With its name."""
    (tmp_path / "file").write_text("x")

    code, _, err = run(model.name, tmp_path / "file")

    assert (code, str(tmp_path / "file") in err) == (1, True)


def test_without_the_package_it_says_what_to_install(run, model, tmp_path, monkeypatch):
    """It is an extra."""
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    code, _, err = run(model.name, tmp_path)

    assert (code, "pip install 'stepwell[tensorboard]'" in err) == (1, True)


@pytest.mark.parametrize(
    ("series", "tag"),
    [
        ("metrics.loss", "metrics/loss"),
        ("metrics.a.b", "metrics/a.b"),
        ("staleness_max", "step/staleness_max"),
    ],
)
def test_a_tag_has_its_group_before_the_stroke(series, tag):
    """Once: what people call their metrics stays."""
    assert tag_of(series) == tag
