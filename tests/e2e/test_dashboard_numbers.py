"""What the dashboard's modules make of numbers, in a real browser, without a model behind them."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.full


@pytest.fixture
def run(url, screen) -> Any:
    """Return what runs a function of the page's modules `series`, `feed`, `workers`, `charts`."""
    screen.page.goto(url)
    screen.page.evaluate(
        """async () => {
          const app = document.querySelector("script[type=module]").src;
          for (const name of ["series", "feed", "workers", "charts"])
            window[name] = await import(new URL(`${name}.js`, app));
        }"""
    )
    return screen.page.evaluate


def test_a_long_training_keeps_its_beginning(run) -> None:
    """After hours the curve is that of a page that was just opened: even, with its spikes."""
    kept = run(
        """() => {
          const feed = new window.feed.Feed("m");
          for (let v = 1; v <= 100_000; v += 1)
            feed.extend("loss", v, v / 20, v === 123 ? 50 : Math.sin(v));
          return feed.series.get("loss");
        }"""
    )

    thousands = [sum(v // 10_000 == part for v in kept["version"]) for part in range(9)]
    assert len(kept["version"]) <= 2000
    assert min(thousands) > 40
    assert kept["value"][kept["version"].index(123)] == 50
    assert kept["version"][-1] == 100_000
    assert sum(kept["weight"]) == pytest.approx(100_000)


def test_what_came_thinned_out_counts_as_much_as_it_stands_for(run) -> None:
    """A thousand values of a million are not pushed out by the next thousand."""
    share = run(
        """() => {
          const value = Array.from({ length: 1000 }, (_, place) => place % 7);
          const version = value.map((_, place) => 1000 * place);
          const sent = { version, time: version, value, mean: value, count: 1e6 };
          let columns = window.series.received(sent);
          for (let v = 1e6; v < 1e6 + 1001; v += 1) window.series.add(columns, v, v, 0);
          columns = window.series.thinned(columns);
          return columns.version.filter((one) => one < 1e6).length / columns.version.length;
        }"""
    )

    assert share > 0.95


def test_a_smoothed_curve_is_that_of_the_means(run) -> None:
    """Of one spike in a hundred values the extremes would show half, the mean a hundredth."""
    smoothed = run(
        """() => {
          const columns = window.series.empty();
          for (let v = 0; v < 10_000; v += 1)
            window.series.add(columns, v, v, v % 100 === 50 ? 100 : 0);
          return window.series.smoothed(window.series.thinned(columns, 100).mean, 0.9).at(-1);
        }"""
    )

    assert smoothed == pytest.approx(1.0, rel=0.01)


def test_steps_that_were_measured_are_always_drawn(run) -> None:
    """The server measures 20 of 1,000 steps a second, and they are not those that are due here."""
    drawn = run(
        """() => {
          const feed = new window.feed.Feed("m");
          for (let number = 1; number <= 1000; number += 1)
            feed.take({
              kind: "step", number, version: number, time: number / 1000, workers: ["w0"],
              metrics: {}, learning_rate: 0.1, staleness_max: 0, staleness_mean: 0,
              update_norm: null,
              gradient_norm: number % 50 === 25 ? 1 : null,
            });
          return feed.series.get("gradient_norm")?.version;
        }"""
    )

    assert drawn == list(range(25, 1001, 50))


def test_a_clock_that_is_set_back_stops_no_curve(run) -> None:
    """What is new is told by the numbers of events, not by their times."""
    versions = run(
        """() => {
          const feed = new window.feed.Feed("m");
          for (let number = 1; number <= 3; number += 1)
            feed.take({
              kind: "step", number, version: number, time: 1e9 - 1000 * number, workers: ["w0"],
              metrics: { w0: { loss: 1 } }, learning_rate: 0.1, staleness_max: 0, staleness_mean: 0,
              gradient_norm: null, update_norm: null,
            });
          return feed.series.get("metrics.loss").version;
        }"""
    )

    assert versions == [1, 2, 3]


def test_a_worker_that_makes_up_names_fills_no_memory(run) -> None:
    """As many metrics as the history has, and no more."""
    count = run(
        """() => {
          const feed = new window.feed.Feed("m");
          for (let name = 0; name < 1000; name += 1) feed.extend(`metrics.${name}`, name, name, 1);
          return feed.series.size;
        }"""
    )

    assert count == 64


SEE = """(looks) => {
  const workers = new window.workers.Workers();
  looks.forEach((look, number) => workers.show(look.map((one, place) => ({
    worker: `w${place}`, epoch: 1, is_open: true, last_sequence: one.pushes, is_waiting: false,
    received_bytes: 4e6 * one.pushes, drops: 0, staleness: 1, staleness_p95: 3, ...one,
  })), number * 1.5));
  const texts = (row) => [...row.children].map((cell) => cell.textContent);
  return [...workers.table.body.children].map(texts);
}"""


@pytest.mark.parametrize("per_look", [[30, 3], [30, 30, 3, 3], [30, 30, 30, 0]])
def test_who_is_much_slower_than_the_middle_is_marked(run, per_look) -> None:
    """Of two too, and of four of whom two are slow."""
    rows = run(SEE, [[{"pushes": look * pushes} for pushes in per_look] for look in range(4)])

    assert ["straggler" in row[1] for row in rows] == [pushes < 15 for pushes in per_look]


def test_who_holds_up_a_barrier_is_marked(run) -> None:
    """All are equally fast there, and the slow one may be slow by a second only."""
    looks = range(6)
    held = [[{"pushes": look, "is_waiting": worker == 0} for worker in range(2)] for look in looks]
    even = [[{"pushes": look, "is_waiting": False} for _ in range(2)] for look in looks]

    assert ["straggler" in row[1] for row in run(SEE, held)] == [False, True]
    assert not any("straggler" in row[1] for row in run(SEE, even))


def test_a_workers_numbers_are_those_of_the_server(run) -> None:
    """Two pushes of 4 MB a second and a half are 2/1.5 a second, and 5.33 MB/s."""
    rows = run(SEE, [[{"pushes": 2 * look}] for look in range(4)])

    assert rows[0][4:] == ["1.33", "5.33", "7", "1", "3", "0"]


DRAW = """async (points) => {
  const feed = new window.feed.Feed("m");
  for (const [version, value] of points) feed.extend("metrics.loss", version, version, value);
  const charts = new window.charts.Charts();
  document.querySelector("main").prepend(charts.whole);
  charts.smoothing.value = "0.5";
  for (const isLog of [false, true]) {
    charts.log.checked = isLog;
    await charts.show([feed]);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
  return charts.grid.querySelector(".plot").data[0].y;
}"""


def test_numbers_that_cannot_be_drawn_are_a_gap(run, screen) -> None:
    """With the largest and smallest numbers there are plotly.js draws to NaN, and complains."""
    values = [5.0, 1.7e308, -1.7e308, 0.0, -1.0, 1e-320, 4.0]

    drawn = run(DRAW, list(enumerate(values)))

    assert drawn == [5, None, None, 0, -1, 0, 4]
    screen.check()


def test_a_version_that_goes_back_is_a_gap(run) -> None:
    """As after a crash that took the last pushes: no line leads back, across the curve."""
    drawn = run(DRAW, [[1, 1.0], [2, 2.0], [3, 3.0], [2, 4.0], [3, 5.0]])

    assert drawn == [1, 2, 3, None, 4, 5]
