"""The dashboard in a real browser: it draws, changes, restores, and breaks no rule of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import stepwell
from stepwell_server.tokens import ROLES, TokenStore

from tests import servers
from tests.browser import watched
from tests.e2e.pages import SIZE, optimizer, show, train, wait_for_text

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A server with one model, and a token of each role."""
    data_dir = tmp_path_factory.mktemp("closed")
    tokens = {role: TokenStore(data_dir).create(role) for role in ROLES}
    with servers.hosted(data_dir) as server:
        train(server.url, "kept", steps=3, token=tokens["admin"])
        yield server.url, tokens


def test_an_empty_server_shows_five_lines_that_work(browser, tmp_path) -> None:
    """Pasted as they are they make a model, which the page then shows by itself."""
    with servers.hosted(tmp_path) as server, watched(browser, server.url) as screen:
        screen.page.goto(server.url)
        program = screen.page.locator("#welcome pre").inner_text()
        assert len(program.strip().splitlines()) == 5

        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

        wait_for_text(screen.page, "#summary h2", "mine")
        wait_for_text(screen.page, "#tile-version", "1")
        assert not screen.page.locator("#welcome").is_visible()
        screen.check()


def test_curves_are_drawn_with_what_the_workers_said(url, screen) -> None:
    """Loss, norms, learning rate; each with its newest value; workers and events beside them."""
    train(url, "drawn", steps=20)

    page = show(screen, "drawn")

    wait_for_text(page, "#curves figcaption", "Pushes per second")
    captions = page.locator("#curves figcaption").all_inner_texts()
    assert [text.rpartition(" ")[0] for text in captions[:4]] == [
        "loss", "Gradient norm", "Update norm", "Learning rate",
    ]  # fmt: skip
    assert captions[0] == "loss 0.05"
    wait_for_text(page, "#workers tbody tr", "w1")
    wait_for_text(page, "#timeline li", "w0 joined")
    page.locator("#log").check()
    page.locator("#smoothing").fill("0.9")
    page.locator("#axis").select_option("time")
    page.locator("#curves .scatterlayer .trace").nth(1).wait_for()  # raw and smoothed


def test_what_happens_is_seen_without_asking(url, screen) -> None:
    """Through the stream: a version, a worker who joins, a checkpoint."""
    train(url, "live", steps=1)
    page = show(screen, "live")
    wait_for_text(page, "#tile-stream", "live")

    with stepwell.Client(url) as client, (model := client.model("live")).worker("late") as worker:
        worker.pull()
        for _ in range(9):
            worker.push({"w": np.ones(SIZE, np.float32)})
        model.checkpoint()

        page.locator("#tile-version", has_text=re.compile("^11$")).wait_for()
        wait_for_text(page, "#timeline li", "late joined")
        wait_for_text(page, "#timeline li", "checkpoint 000002-v11")
        wait_for_text(page, "#checkpoints tbody th", "000002-v11")


def test_a_learning_rate_is_changed_after_a_question(url, screen) -> None:
    """Escape changes nothing; yes changes that value alone."""
    train(url, "tuned", steps=1)
    page = show(screen, "tuned")
    before = optimizer(url, "tuned")
    page.locator("#h-learning_rate").fill("0.25")

    page.locator("#change").click()
    page.keyboard.press("Escape")
    assert optimizer(url, "tuned") == before

    page.locator("#change").click()
    assert "0.001 → 0.25" in page.locator("#dialog").inner_text()
    page.locator("#confirm").click()
    wait_for_text(page, "#timeline li", "learning_rate")
    assert optimizer(url, "tuned") == {**before, "learning_rate": 0.25}


def test_who_looked_at_older_values_changes_nothing(browser, url) -> None:
    """The page says that somebody else was there, and shows the present values."""
    train(url, "shared", steps=1)
    with watched(browser, url) as screen:
        page = show(screen, "shared")
        page.locator("#h-learning_rate").fill("0.5")
        page.route(
            "**/optimizer",
            lambda route: route.abort() if route.request.method == "GET" else route.continue_(),
        )
        httpx.patch(f"{url}/v1/models/shared/optimizer", json={"learning_rate": 0.125})
        wait_for_text(page, "#timeline li", "0.125")
        page.unroute("**/optimizer")

        page.locator("#change").click()
        page.locator("#confirm").click()

        wait_for_text(page, "#notice.failed", "Somebody else changed the optimizer")
        assert optimizer(url, "shared")["learning_rate"] == 0.125


def test_a_value_that_cannot_be_is_the_servers_sentence(browser, url) -> None:
    """And one that is no JSON is the page's."""
    train(url, "refused", steps=1)
    with watched(browser, url) as screen:
        page = show(screen, "refused")
        page.locator("#h-beta_1").fill("about one")
        page.locator("#change").click()
        wait_for_text(page, "#notice.failed", "Received: about one")

        page.locator("#h-beta_1").fill('"seven"')
        page.locator("#change").click()
        page.locator("#confirm").click()

        wait_for_text(page, "#notice.failed", "beta_1")
        assert optimizer(url, "refused")["beta_1"] == 0.9
        screen.check(allowed="422")


def test_a_checkpoint_is_verified_downloaded_and_restored(url, screen, tmp_path) -> None:
    """The model is as it was, under a new version, and the page says so."""
    train(url, "saved", steps=5)
    page = show(screen, "saved")

    page.locator("[data-action=verify]").click()
    wait_for_text(page, "#notice", "is whole")
    with page.expect_download() as download:
        page.locator("[data-action=download]").click()
    assert download.value.suggested_filename.startswith("saved-000001-v0-")
    page.locator("[data-action=restore]").click()
    page.locator("#confirm").click()

    wait_for_text(page, "#timeline li", "restored 000001-v0")
    page.locator("#tile-version", has_text=re.compile("^11$")).wait_for()  # versions only go up
    assert httpx.get(f"{url}/v1/models/saved").json()["iterations"] == 0


def test_models_are_compared_in_one_picture(url, screen) -> None:
    """The other one gets a line of its own in every curve."""
    train(url, "first", steps=4)
    train(url, "second", steps=4)
    page = show(screen, "first")

    page.locator("#compare input[value=second]").check()

    page.locator("#curves figure").first.locator(".scatterlayer .trace").nth(1).wait_for()
    assert page.locator("#curves .legendtext").first.text_content() == "first"


def test_names_that_workers_made_up_are_text(url, screen) -> None:
    """A metric may be called anything printable, and is never HTML."""
    train(url, "hostile", steps=1)
    name = "<img src=x onerror=alert(1)>"
    with stepwell.Client(url) as client, client.model("hostile").worker("w2") as worker:
        worker.pull()
        worker.push({"w": np.ones(SIZE, np.float32)}, metrics={name: 1.0, "<b>": 2.0})

    page = show(screen, "hostile")

    wait_for_text(page, "#curves figcaption", name)
    assert page.locator("#curves img, #curves b").count() == 0


def test_a_closed_server_asks_for_a_token_and_the_tab_keeps_it(browser, closed) -> None:
    """A wrong one is said to be; a right one lasts as long as the tab, and no longer."""
    url, tokens = closed
    with watched(browser, url) as screen:
        page = screen.page
        page.goto(url)
        page.get_by_label("Token", exact=True).fill("sw_read_00000000_" + "0" * 64)
        page.get_by_role("button", name="Continue").click()
        wait_for_text(page, "#notice.failed", "does not know this token")

        page.get_by_label("Token", exact=True).fill(tokens["read"])
        page.get_by_role("button", name="Continue").click()
        wait_for_text(page, "#summary h2", "kept")
        page.reload()
        wait_for_text(page, "#summary h2", "kept")
        assert page.evaluate("Object.values(localStorage).concat(document.cookie).join('')") == ""
        page.get_by_role("button", name="Forget token").click()
        page.locator("#token-form").wait_for()
        screen.check(allowed="401")


@pytest.mark.parametrize("role", ROLES)
def test_a_role_sees_no_button_that_would_fail(browser, closed, role) -> None:
    """Who may not change anything may look, and download."""
    url, tokens = closed
    with watched(browser, url) as screen:
        page = screen.page
        page.goto(url)
        page.locator("#token-form").wait_for()
        page.evaluate("token => sessionStorage.setItem('stepwell.token', token)", tokens[role])
        page.reload()
        page.locator("[data-action=download]").first.wait_for()

        changing = page.locator("[data-action=verify], [data-action=restore], #write, #change")

        assert changing.count() == (4 if role == "admin" else 0)
        is_fixed = page.locator("#h-learning_rate").get_attribute("readonly") is not None
        assert is_fixed is (role != "admin")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(browser, url, scheme) -> None:
    """In light and dark, with text that stands out from what is behind it."""
    name = f"phone-{scheme}"
    train(url, name, steps=5)
    options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    with watched(browser, url, **options) as screen:
        page = show(screen, name)

        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        is_dark = sum(map(int, background[4:-1].split(","))) < 3 * 128
        assert is_dark is (scheme == "dark")
        assert page.evaluate(LEAST_CONTRAST) >= 4.5  # WCAG 2.2, level AA
        screen.check()


# The least contrast of any text on the page with the card that it stands on.
LEAST_CONTRAST = """() => {
  const light = (color) => color.match(/[0-9.]+/g).slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  }).reduce((sum, share, place) => sum + share * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }
  };
  return Math.min(...[...document.querySelectorAll("main *, header *")]
    .filter((one) => one.checkVisibility())
    .filter((one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .filter((one) => !(one instanceof SVGElement))
    .map((one) => [light(getComputedStyle(one).color), light(behind(one))].sort())
    .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)));
}"""


def test_everything_that_can_be_used_has_a_name(url, screen) -> None:
    """For people who hear the page instead of seeing it."""
    train(url, "named", steps=1)
    page = show(screen, "named")

    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, a")]
        .filter((one) => one.checkVisibility() && !one.closest(".js-plotly-plot"))
        .filter((one) => !(one.innerText.trim() || one.ariaLabel || one.labels?.length))
        .map((one) => one.outerHTML)""")

    assert nameless == []


def test_a_server_that_goes_away_and_comes_back_is_noticed(browser, tmp_path: Path) -> None:
    """The page says that nobody answers, and goes on by itself."""
    server = servers.start(tmp_path)
    url = server.wait_for("ready")["address"]
    train(url, "again", steps=2)
    with watched(browser, url) as screen:
        page = show(screen, "again")
        server.stop()
        wait_for_text(page, "#server-state", "no answer")

        again = servers.start(tmp_path, port=int(url.rpartition(":")[2]))
        again.wait_for("ready")
        try:
            wait_for_text(page, "#server-state", "ready")
            wait_for_text(page, "#timeline li:first-child", "server started")
            wait_for_text(page, "#tile-stream", "live")
        finally:
            screen.page.close()
            again.stop()
