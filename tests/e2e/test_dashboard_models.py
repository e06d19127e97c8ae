"""The dashboard while models come and go: it follows, lets go of what was, and stays in place."""

from __future__ import annotations

import httpx
import pytest

from tests import servers
from tests.browser import watched
from tests.e2e.pages import show, train, wait_for_text

pytestmark = pytest.mark.full

POINTS = "document.querySelector('#curves .plot').data[0].x.length"
IS_HIDDEN = """
window.isHidden = true;
Object.defineProperty(document, "hidden", { get: () => window.isHidden });
"""
LOOK = "window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))"


def test_another_model_is_shown_after_a_comparison(url, screen) -> None:
    """Models that were compared have no stream to stop, and do not keep the page where it is."""
    for name in ("from", "beside", "to"):
        train(url, name, steps=2)
    page = show(screen, "from")
    page.locator("#compare input[value=beside]").check()
    page.locator("#curves .legendtext").first.wait_for()

    page.locator("#models a", has_text="to").click()

    wait_for_text(page, "#summary h2", "to")
    assert page.locator("#server-state").inner_text() == "ready"


def test_a_compared_model_that_is_deleted_is_compared_no_more(browser, url) -> None:
    """The page goes on, without its curve and its box."""
    train(url, "stays", steps=2)
    train(url, "goes", steps=2)
    with watched(browser, url) as screen:
        page = show(screen, "stays")
        page.locator("#compare input[value=goes]").check()
        page.locator("#curves .legendtext").first.wait_for()

        httpx.delete(f"{url}/v1/models/goes").raise_for_status()

        page.locator("#compare input[value=goes]").wait_for(state="detached")
        page.locator("#curves .legendtext").first.wait_for(state="detached")
        wait_for_text(page, "#server-state", "ready")
        screen.check(allowed="404")


def test_a_page_that_opens_unseen_has_one_stream_once_it_is_seen(browser, url) -> None:
    """As behind a link that is opened in a new tab: none before, and each event once after."""
    train(url, "unseen", steps=2)
    with watched(browser, url) as screen:
        page, streams = screen.page, []
        page.add_init_script(IS_HIDDEN)
        page.on("request", lambda asked: streams.append(asked.url) if "/events" in asked.url else 0)
        page.goto(f"{url}/#unseen")
        wait_for_text(page, "#workers tbody tr", "w1")
        before = len(streams)

        page.evaluate(LOOK)

        wait_for_text(page, "#tile-stream", "live")
        assert (before, len(streams)) == (0, 1)
        screen.check()


def test_models_that_were_looked_at_leave_nothing_behind(url, screen) -> None:
    """Neither curves, which have thousands of elements, nor who listens to the window."""
    for name in ("one", "other"):
        train(url, name, steps=20)
    page = show(screen, "one")
    browser = page.context.new_cdp_session(page)

    def look(times: int) -> dict[str, int]:
        for _ in range(times):
            for name in ("other", "one"):
                page.evaluate(f"location.hash = '{name}'")
                wait_for_text(page, "#summary h2", name)
                page.locator("#curves .main-svg").first.wait_for()
        browser.send("HeapProfiler.collectGarbage")
        return dict(browser.send("Memory.getDOMCounters"))

    before, after = look(1), look(4)

    assert after["nodes"] < 1.5 * before["nodes"]
    assert after["jsEventListeners"] < 1.5 * before["jsEventListeners"]


def test_a_page_stays_with_its_model_when_another_comes(browser, tmp_path) -> None:
    """Who named none, or something that is no name, looks at the first one, and goes on to."""
    with servers.hosted(tmp_path) as server, watched(browser, server.url) as screen:
        train(server.url, "mine", steps=1)
        screen.page.goto(f"{server.url}/#%")
        wait_for_text(screen.page, "#summary h2", "mine")

        train(server.url, "before", steps=1)

        wait_for_text(screen.page, "#models", "before")
        assert screen.page.locator("#summary h2").inner_text() == "mine"
        screen.check()


def test_a_model_that_is_made_anew_is_shown_anew(browser, url) -> None:
    """Between two looks: neither the version, nor a point of the old curve, nor its events stay."""
    train(url, "again", steps=30)
    with watched(browser, url) as screen:
        page = show(screen, "again")
        wait_for_text(page, "#tile-stream", "live")

        httpx.delete(f"{url}/v1/models/again").raise_for_status()
        train(url, "again", steps=2)

        wait_for_text(page, "#curves figcaption", "loss 0.5")
        wait_for_text(page, "#tile-version", "4")
        page.wait_for_function(f"() => {POINTS} === 4")
        assert page.locator("#timeline li", has_text="w0 joined").count() == 1
        screen.check(allowed="404")


def test_a_page_that_looks_again_goes_on_where_it_was(browser, url) -> None:
    """Reading a long history takes a server seconds; who changes tabs has it, and what is new."""
    train(url, "looked", steps=2)
    with watched(browser, url) as screen:
        page, read = screen.page, []
        page.add_init_script(IS_HIDDEN.replace("= true", "= false"))
        page.on("request", lambda asked: read.append(asked.url) if "/history" in asked.url else 0)
        show(screen, "looked")
        wait_for_text(page, "#tile-stream", "live")
        before = len(read)

        page.evaluate(LOOK.replace("= false", "= true"))
        httpx.patch(f"{url}/v1/models/looked/optimizer", json={"learning_rate": 0.125})
        page.evaluate(LOOK)

        wait_for_text(page, "#timeline li", "0.125")
        page.locator("#h-learning_rate[data-now='0.125']").wait_for()
        assert len(read) == before
        screen.check()


def test_a_model_that_was_made_anew_while_nobody_looked_is_shown_anew(browser, url) -> None:
    """Its numbers may be larger by now than those that the page knows."""
    train(url, "swapped", steps=2)
    with watched(browser, url) as screen:
        page = screen.page
        page.add_init_script(IS_HIDDEN.replace("= true", "= false"))
        show(screen, "swapped")
        wait_for_text(page, "#tile-stream", "live")

        page.evaluate(LOOK.replace("= false", "= true"))
        httpx.delete(f"{url}/v1/models/swapped").raise_for_status()
        train(url, "swapped", steps=20)
        page.evaluate(LOOK)

        page.wait_for_function(f"() => {POINTS} === 40")
        wait_for_text(page, "#tile-version", "40")
        screen.check(allowed="404")
