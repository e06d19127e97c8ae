"""`stepwell top`, beside a real server."""

from __future__ import annotations

import json
import sys

import httpx
import pytest
from stepwell_server.cli import main
from stepwell_server.cli_questions import Questions
from stepwell_server.cli_top import Looks, Sight, _rates

from tests.server.calls import LAYOUT, Worker, create, new_name
from tests.servers import ServerThread


@pytest.fixture
def trained(http: httpx.Client) -> tuple[str, Worker]:
    """A model with one worker that pushed once."""
    path = create(http, name := new_name())
    worker = Worker(http, path, "here")
    worker.push()
    return name, worker


@pytest.fixture
def run(server: ServerThread, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command against `server`; returns its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()  # what the server logged so far
        monkeypatch.setattr(sys, "argv", ["stepwell", "top", "--url", server.url, *arguments])
        code = main()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_rates_are_of_what_happened_between_two_looks(server, trained):
    """Three pushes in two seconds, of a clock that the test holds."""
    name, worker = trained
    now = 0.0
    with Questions(server.url) as questions:
        looks = Looks(questions, lambda: now)
        (before,) = [model for model in looks.look()["models"] if model["name"] == name]
        for _ in range(3):
            worker.push()
        now = 2.0

        (model,) = [model for model in looks.look()["models"] if model["name"] == name]

    assert before["versions_per_s"] is None
    assert (model["version"], model["versions_per_s"], model["pushes_per_s"]) == (4, 1.5, 1.5)
    assert model["bytes_per_s"] == 1.5 * LAYOUT.nbytes
    assert model["staleness"] >= 0
    assert [(w["worker"], w["is_waiting"]) for w in model["workers"]] == [("here", False)]


def test_a_restore_is_no_negative_rate():
    """Versions of two incarnations are not compared."""
    before = Sight(0.0, "a", 100, {("w", 1): 100})

    assert _rates(before, Sight(1.0, "b", 3, {("w", 1): 3}))["versions_per_s"] is None
    assert _rates(before, Sight(1.0, "a", 103, {("w", 2): 3})) == {
        "versions_per_s": 3.0,
        "pushes_per_s": 3.0,
    }


def test_once_prints_a_screen_and_ends(run, trained):
    """Models first, then who trains them."""
    code, out, err = run("--once", "--interval-s", "0.2")

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "ready" in lines[0]
    (row,) = [line.split() for line in lines if line.startswith(f"{trained[0]} ")]
    assert row[1:4] == ["1", "0.0", "0.0"]
    assert any(line.split()[:3] == ["here", trained[0], "here"] for line in lines)


def test_once_as_json_is_one_line(run, trained):
    """For programs; with numbers, not with what people read."""
    code, out, _ = run("--once", "--json", "--interval-s", "0.2")

    assert code == 0
    assert out.count("\n") == 1
    (model,) = [m for m in json.loads(out)["models"] if m["name"] == trained[0]]
    assert model["versions_per_s"] == 0
    assert model["workers"][0]["last_push_s"] >= 0


def test_a_server_that_is_not_there_is_a_sentence(run):
    """At the first look; later it is looked for again."""
    code, out, err = run("--once", "--url", "http://127.0.0.1:9")

    assert (code, out) == (1, "")
    assert "cannot be reached" in err


@pytest.mark.parametrize("is_dumb", [False, True])
def test_without_a_screen_each_look_is_printed_when_it_comes(
    run, trained, monkeypatch, is_dumb: bool
):
    """Into a pipe or a file, and on a terminal that cannot be painted again."""
    name, _ = trained
    looks = 0

    def interrupted(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("stepwell_server.cli_top.time.sleep", interrupted)
    if is_dumb:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "dumb")
    code, out, _ = run()

    assert code == 130
    assert out.count(name) >= 2
    assert "\x1b" not in out


def test_a_model_that_is_deleted_during_a_look_is_left_out(server, trained, monkeypatch):
    """Such as that of a `stepwell bench` beside it; the others are seen."""
    name, _ = trained
    with Questions(server.url) as questions:
        ask = questions.ask

        def with_a_ghost(path: str, *fields: str):
            found = ask(path, *fields)
            if path == "/v1/models":
                found["models"].insert(0, {**found["models"][0], "name": "ghost"})
            return found

        monkeypatch.setattr(questions, "ask", with_a_ghost)
        names = [model["name"] for model in Looks(questions).look()["models"]]

    assert name in names
    assert "ghost" not in names


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e9"])
def test_an_interval_that_no_clock_has_is_refused(run, seconds):
    """With a sentence, before anything is asked."""
    code, out, err = run("--once", "--interval-s", seconds)

    assert (code, out) == (2, "")
    assert "--interval-s" in err


def test_an_interval_that_would_be_a_busy_loop_is_refused(run):
    """As any wrong option."""
    assert run("--once", "--interval-s", "0")[0] == 2
