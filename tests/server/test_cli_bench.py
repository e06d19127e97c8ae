"""`stepwell bench`: it times real calls, and leaves a server as it was."""

from __future__ import annotations

import json
import signal
import sys

import pytest
import stepwell
from stepwell.errors import ConnectionFailed
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_while_the_model_is_made_leaves_none(run, url, monkeypatch, number):
    """The server goes on making it, so the command stays until it can be deleted."""
    create = stepwell.Client.create_model

    def stopped(client, *arguments, **options):
        signal.raise_signal(number)
        return create(client, *arguments, **options)

    monkeypatch.setattr(stepwell.Client, "create_model", stopped)
    before = signal.getsignal(number)
    if before == signal.SIG_IGN:  # the tests run under nohup
        signal.signal(number, signal.SIG_DFL)
    unignored = signal.getsignal(number)
    try:
        code, out, _ = run("--size", "4000")
        assert signal.getsignal(number) is unignored
    finally:
        signal.signal(number, before)

    assert (code, out) == (130, "")
    assert models(url) == []


def test_a_second_stop_does_not_wait(run, monkeypatch):
    """For a server that does not answer."""

    def never(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(stepwell.Client, "create_model", never)

    assert run("--size", "4000")[0] == 130


def test_what_ignores_a_hangup_goes_on_ignoring_it(run, monkeypatch):
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            cli_bench, "_figures", lambda *arguments: signal.raise_signal(signal.SIGHUP) or []
        )
        code = run("--size", "4000")[0]
    finally:
        signal.signal(signal.SIGHUP, before)

    assert code == 0


def test_a_model_that_cannot_be_deleted_is_named(run, url, monkeypatch):
    """It is on somebody's server, and takes memory there."""
    delete = stepwell.Client.delete_model

    def refused(client, name):
        raise ConnectionFailed("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(stepwell.Client, "delete_model", refused)
        code, _, err = run("--size", "4000", "--seconds", "0.01")
    (left,) = models(url)
    with stepwell.Client(url) as client:
        delete(client, left)

    assert code == 1
    assert left in err
    assert "the server is gone" in err


def test_a_size_is_that_of_whole_elements(run):
    """Rates are of what was sent."""
    _, out, _ = run("--size", "4003", "--seconds", "0.01", "--json")

    assert {figure["nbytes"] for figure in json.loads(out)["figures"]} == {4000}


def test_an_optimizer_that_is_none_is_a_sentence(run, url):
    """As `create_model` says it."""
    code, out, err = run("--optimizer", "sdg", "--size", "4000")

    assert (code, out) == (1, "")
    assert "sdg" in err
    assert models(url) == []
