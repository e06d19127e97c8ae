"""`stepwell bench`: it times real calls, and leaves a server as it was."""

from __future__ import annotations

import json
import sys

import pytest
import stepwell
from stepwell_server import cli, cli_bench

from tests import servers


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server."""
    with servers.hosted_aside(tmp_path_factory.mktemp("data")) as server:
        yield server.url


@pytest.fixture
def run(url, monkeypatch, capsys):
    """Run the command in this process; returns its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stepwell", "bench", *arguments, "--url", url])
        capsys.readouterr()
        return cli.main(), *capsys.readouterr()

    return run


def models(url):
    """Return the models on the server."""
    with stepwell.Client(url) as client:
        return client.models()


def test_each_kind_of_call_has_its_figures(run, url):
    """For programs; nothing is left on the server."""
    sizes = ("--size", "4000", "--size", "1000000")
    code, out, err = run(*sizes, "--seconds", "0.05", "--json")

    figures = json.loads(out)["figures"]
    assert (code, err) == (0, "")
    assert [(figure["call"], figure["nbytes"]) for figure in figures] == [
        (call, nbytes) for nbytes in (4000, 1_000_000) for call in ("push", "pull", "push_pull")
    ]
    for figure in figures:
        assert figure["calls"] >= cli_bench.LEAST_CALLS
        assert 0 < figure["p50_s"] <= figure["p99_s"]
        ways = 2 if figure["call"] == "push_pull" else 1
        assert figure["bytes_per_s"] == pytest.approx(ways * figure["nbytes"] / figure["p50_s"])
    assert models(url) == []


def test_for_people_it_is_a_table(run):
    """A line a figure."""
    code, out, _ = run("--size", "4000", "--seconds", "0.01", "--transport", "http")

    head, *lines = out.splitlines()
    assert (code, head.split()) == (0, ["call", "size", "median", "p99", "rate", "calls"])
    assert [line.split()[0] for line in lines] == ["push", "pull", "push_pull"]


def test_a_bench_that_fails_leaves_no_model(run, url, monkeypatch):
    """Ctrl-C in the middle of it, too."""

    def interrupted(*arguments):
        assert len(models(url)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_bench, "_figures", interrupted)
    code, out, _ = run("--size", "4000")

    assert (code, out) == (130, "")
    assert models(url) == []


def test_an_optimizer_that_is_none_is_a_sentence(run, url):
    """As `create_model` says it."""
    code, out, err = run("--optimizer", "sdg", "--size", "4000")

    assert (code, out) == (1, "")
    assert "sdg" in err
    assert models(url) == []
