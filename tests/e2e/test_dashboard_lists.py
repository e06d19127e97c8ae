"""What is long on the dashboard: a fleet of workers."""

from __future__ import annotations

import pytest
import stepwell

from tests.browser import watched
from tests.e2e.pages import show, train

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
