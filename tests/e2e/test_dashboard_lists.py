"""What is long on the dashboard: a fleet of workers, a timeline; and values that are none."""

from __future__ import annotations

import re
from typing import Any

import httpx
import numpy as np
import pytest
import stepwell

from tests.browser import watched
from tests.e2e.pages import SIZE, optimizer, show, train, wait_for_text

pytestmark = pytest.mark.full

WORKERS = "#workers [role=region]"

BOX = """(box) => {
  const top = (one) => one.getBoundingClientRect().top - box.getBoundingClientRect().top;
  const rows = [...box.querySelectorAll("tbody tr")];
  const bottom = box.querySelector("thead th").getBoundingClientRect().bottom;
  const end = box.getBoundingClientRect().bottom;
  return {
    height: box.clientHeight, inside: box.scrollHeight, scrolled: box.scrollTop,
    head: top(box.querySelector("thead th")),
    seen: rows.filter((row) => row.getBoundingClientRect().top >= bottom - 1
      && row.getBoundingClientRect().bottom <= end + 1).map((row) => row.dataset.key),
  };
}"""


def start_fleet(url: str, name: str, workers: int) -> None:
    """Make a model with so many workers, who stay."""
    train(url, name, steps=1)
    with stepwell.Client(url) as client:
        for number in range(2, workers):
            client.model(name).worker(f"w{number}").pull()


@pytest.fixture(scope="module")
def busy(url) -> str:
    """Return a model with a checkpoint, and then more joins than the page keeps events."""
    train(url, "busy", steps=1)
    with stepwell.Client(url) as client:
        model = client.model("busy")
        model.checkpoint()
        for _ in range(301):
            with model.worker("spot") as worker:
                worker.pull()
    return "busy"


def make_it_paint(page: Any, url: str) -> None:
    """Make a step of the busy model, and wait until the page has painted it."""
    with stepwell.Client(url) as client, client.model("busy").worker("late") as worker:
        worker.pull()
        worker.push({"w": np.ones(SIZE, np.float32)})
    version = httpx.get(f"{url}/v1/models/busy").json()["version"]
    page.locator("#tile-version", has_text=re.compile(f"^{version}$")).wait_for()


def test_a_fleet_scrolls_in_its_own_box_under_its_heading(url, screen) -> None:
    """Some 20 rows of 64, whose columns keep their names; the keyboard gets to the last one."""
    start_fleet(url, "fleet", workers=64)
    page = show(screen, "fleet")
    box = page.locator(WORKERS)
    page.locator("#workers tbody tr").nth(63).wait_for()
    before = box.evaluate(BOX)

    box.focus()
    page.keyboard.press("End")
    page.wait_for_function(f"() => document.querySelector('{WORKERS}').scrollTop > 900")
    page.locator("#workers tbody tr", has_text="w63").hover()

    after = box.evaluate(BOX)
    assert 18 <= len(before["seen"]) <= 22
    assert (before["seen"][0], after["seen"][-1]) == ("w0", "w63")
    assert before["head"] == after["head"]
    assert box.get_attribute("aria-label") == "Workers"


def test_on_a_phone_a_fleet_leaves_room_to_scroll_past_it(browser, url) -> None:
    """A box as high as the screen would hold every finger that wants to go on."""
    start_fleet(url, "pocket", workers=64)
    with watched(browser, url, viewport={"width": 360, "height": 740}, has_touch=True) as screen:
        page = show(screen, "pocket")
        page.locator("#workers tbody tr").nth(63).wait_for()

        box = page.locator(WORKERS).evaluate(BOX)

        assert box["height"] <= 0.75 * 740 < box["inside"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        screen.check()


def test_a_few_workers_are_seen_without_scrolling(url, screen) -> None:
    """Nothing is hidden where there is room."""
    train(url, "pair", steps=1)
    page = show(screen, "pair")
    page.locator("#workers tbody tr").nth(1).wait_for()

    box = page.locator(WORKERS).evaluate(BOX)

    assert box["seen"] == ["w0", "w1"]
    assert box["height"] == box["inside"]


def test_a_kind_of_event_is_found_behind_many_others(url, screen, busy) -> None:
    """The page keeps 500 events; one that is older is asked for, and new ones still come."""
    page = show(screen, busy)
    wait_for_text(page, "#timeline .note", "older ones are in GET")
    assert page.locator("#timeline li", has_text="checkpoint").count() == 0

    page.locator("#kinds").select_option("checkpoint")

    wait_for_text(page, "#timeline li", "checkpoint 000002-v2")
    assert not page.locator("#timeline .note").is_visible()
    with stepwell.Client(url) as client:
        client.model(busy).checkpoint()
    wait_for_text(page, "#timeline li", "checkpoint 000003-v2")
    assert page.locator("#timeline li").count() == 2
    page.locator("#kinds").select_option("join")
    page.locator("#timeline .note", has_text="243 older ones").wait_for()  # 303 came, 60 are here


def test_a_timeline_that_cannot_be_read_says_so(browser, url, busy) -> None:
    """And does not ask again and again, nor call what it has the whole."""
    with watched(browser, url) as screen:
        page = show(screen, busy)
        asked = []
        page.route(
            "**/history?*kinds=checkpoint&series=false",
            lambda route: (asked.append(1), route.fulfill(status=500, body="{}")),
        )

        page.locator("#kinds").select_option("checkpoint")

        wait_for_text(page, "#notice.failed", "newest events alone")
        wait_for_text(page, "#timeline .note", "Older ones may be")
        make_it_paint(page, url)
        assert len(asked) == 1
        screen.check(allowed="500")


def test_a_history_that_has_lost_its_events_is_asked_once(url, screen, busy) -> None:
    """As one on a full disk: what the stream brought is all there is, and asking again no help."""
    page = show(screen, busy)
    columns = {name: [] for name in ("number", "time", "kind", "version", "fields")}
    asked = []
    page.route(
        "**/history?*kinds=join&series=false",
        lambda route: (
            asked.append(1),
            route.fulfill(json={"last": 0, "events": columns, "left_out": 0, "series": {}}),
        ),
    )

    page.locator("#kinds").select_option("join")

    page.wait_for_function("() => document.querySelectorAll('#timeline li').length === 60")
    make_it_paint(page, url)
    assert len(asked) == 1


def test_a_value_that_comes_with_each_push_is_not_to_be_written(url, screen) -> None:
    """As torch's learning rate: it has no value here, and the others are changed all the same."""
    rule = stepwell.Adam(stepwell.PerPush(), clipnorm=1.0)
    with stepwell.Client(url) as client:
        client.create_model("torch", {"w": np.zeros(SIZE, np.float32)}, optimizer=rule)
    page = screen.page
    page.goto(f"{url}/#torch")
    field = page.locator("#h-learning_rate[data-now]")
    field.wait_for()

    assert field.input_value() == "comes with each push"
    assert not field.is_editable()
    assert field.evaluate("(one) => one.scrollWidth - one.clientWidth") <= 0
    page.locator("#h-clipnorm").fill("0.5")
    page.locator("#change").click()
    page.locator("#confirm").click()
    page.locator("#h-clipnorm[data-now='0.5']").wait_for()

    assert optimizer(url, "torch")["learning_rate"] == {"class_name": "PerPush"}
