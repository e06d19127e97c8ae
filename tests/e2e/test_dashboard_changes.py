"""The dashboard asks before it changes, changes what it asked for, and says what is so."""

from __future__ import annotations

import os
import signal

import httpx
import numpy as np
import pytest
import stepwell
from stepwell_server.tokens import TokenStore

from tests import servers
from tests.browser import watched
from tests.e2e.pages import SIZE, optimizer, show, train, wait_for_text

pytestmark = pytest.mark.full

FOCUSED = "document.activeElement.id"


def test_a_question_is_about_the_values_that_it_names(browser, url) -> None:
    """Who changed the optimizer while it was open is not overwritten by a yes to something else."""
    train(url, "asked", steps=1)
    with watched(browser, url) as screen:
        page = show(screen, "asked")
        page.locator("#h-learning_rate").fill("0.5")
        page.locator("#change").click()
        assert "0.001 → 0.5" in page.locator("#dialog").inner_text()
        assert "asked" in page.locator("#dialog").inner_text()

        httpx.patch(f"{url}/v1/models/asked/optimizer", json={"learning_rate": 0.125})
        wait_for_text(page, "#timeline li", "0.125")
        page.locator("#h-learning_rate[data-now='0.125']").wait_for()
        page.locator("#confirm").click()

        wait_for_text(page, "#notice.failed", "Somebody else changed the optimizer")
        assert optimizer(url, "asked")["learning_rate"] == 0.125
        screen.check(allowed="412")


def test_a_number_beyond_all_numbers_is_not_sent_as_none(url, screen) -> None:
    """JSON would make null of it, which switches clipping off."""
    with stepwell.Client(url) as client:
        start = {"w": np.zeros(SIZE, np.float32)}
        client.create_model("endless", start, optimizer=stepwell.Adam(1e-3, clipnorm=1.0))
    page = screen.page
    page.goto(f"{url}/#endless")
    page.locator("#h-clipnorm").fill("1e400")

    page.locator("#change").click()

    wait_for_text(page, "#notice.failed", "Received: 1e400")
    assert optimizer(url, "endless")["clipnorm"] == 1.0


def test_a_model_without_steps_says_so(url, screen) -> None:
    """Instead of a legend of curves that are not there."""
    with stepwell.Client(url) as client:
        client.create_model("fresh", {"w": np.zeros(SIZE, np.float32)}, optimizer=stepwell.SGD(0.1))

    screen.page.goto(f"{url}/#fresh")

    wait_for_text(screen.page, "#curves-section", "No step was made yet")
    wait_for_text(screen.page, "#workers", "No worker has joined yet")


def test_who_has_no_mouse_is_where_they_were_after_a_question(url, screen) -> None:
    """Whether the answer is no or yes: the button has the focus again."""
    train(url, "keyboard", steps=1)
    page = show(screen, "keyboard")
    page.locator("#h-learning_rate").fill("0.25")
    page.locator("#change").focus()

    page.keyboard.press("Enter")
    page.locator("#cancel").wait_for()
    assert page.evaluate(FOCUSED) == "cancel"
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => {FOCUSED} === 'change'")

    page.keyboard.press("Enter")
    page.locator("#confirm").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => {FOCUSED} === 'change'")
    assert optimizer(url, "keyboard")["learning_rate"] == 0.25


def test_metrics_that_are_not_drawn_are_counted_and_names_do_not_turn_numbers_round(
    url, screen
) -> None:
    """Of 20 metrics 12 are curves; one whose name ends in a right-to-left mark is apart."""
    train(url, "many", steps=1)
    name = "loss\u202e"
    with stepwell.Client(url) as client, client.model("many").worker("w2") as worker:
        worker.pull()
        metrics = {name: 12.5} | {f"m{number}": 1.0 for number in range(18)}
        worker.push({"w": np.ones(SIZE, np.float32)}, metrics=metrics)

    page = show(screen, "many")

    wait_for_text(page, "#curves-section .note", "8 more metrics are in GET")
    assert page.locator("#curves figcaption bdi", has_text=name).count() == 1


def test_letters_that_no_token_has_are_not_sent(browser, tmp_path) -> None:
    """A header cannot have them: the page would say for ever that nobody answers."""
    TokenStore(tmp_path).create("read")
    with servers.hosted(tmp_path) as server, watched(browser, server.url) as screen:
        screen.page.goto(server.url)
        screen.page.get_by_label("Token", exact=True).fill("ключ")

        screen.page.get_by_role("button", name="Continue").click()

        wait_for_text(screen.page, "#notice.failed", "That is no token")
        assert screen.page.locator("#server-state").inner_text() == "needs a token"
        screen.check(allowed="401")


def test_a_server_that_stands_still_is_not_called_live(browser, tmp_path) -> None:
    """Nothing ends a connection to it: the page has to miss its answers."""
    with servers.served(tmp_path) as server, watched(browser, server.url) as screen:
        train(server.url, "still", steps=1)
        page = screen.page
        page.goto(server.url)
        wait_for_text(page, "#tile-stream", "live")

        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            wait_for_text(page, "#server-state", "no answer")
            wait_for_text(page, "#tile-stream", "reconnecting")
        finally:
            os.kill(server.process.pid, signal.SIGCONT)

        wait_for_text(page, "#server-state", "ready")
        wait_for_text(page, "#tile-stream", "live")


def test_a_checkpoint_that_is_found_damaged_is_not_called_whole(browser, tmp_path) -> None:
    """Neither by the notice nor in its row, whatever was found before."""
    with servers.hosted(tmp_path) as server, watched(browser, server.url) as screen:
        train(server.url, "rotten", steps=1)
        page = show(screen, "rotten")
        page.locator("[data-action=verify]").click()
        wait_for_text(page, "#checkpoints tbody tr", "verified at")
        (file,) = tmp_path.glob("rotten/checkpoints/*/parameters.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 0xFF
        file.chmod(0o644)
        file.write_bytes(content)

        page.locator("[data-action=verify]").click()

        page.locator("#notice.failed").wait_for()
        wait_for_text(page, "#checkpoints tbody tr", "damaged")
        assert "verified at" not in page.locator("#checkpoints tbody").inner_text()


def test_a_checkpoint_that_is_deleted_elsewhere_is_offered_no_more(url, screen) -> None:
    """Its deletion is no event; the list is asked for again all the same."""
    train(url, "thinned", steps=1)
    page = show(screen, "thinned")
    with stepwell.Client(url) as client:
        client.model("thinned").checkpoint()
    row = page.locator("#checkpoints tbody th", has_text="000001-v0")
    page.locator("#checkpoints tbody th", has_text="000002-v2").wait_for()
    row.wait_for()

    httpx.delete(f"{url}/v1/models/thinned/checkpoints/000001-v0").raise_for_status()

    row.wait_for(state="detached")


def test_a_browser_that_stores_nothing_shows_the_page(url, screen) -> None:
    """As one that blocks cookies; the token is kept until the page is left."""
    train(url, "private", steps=1)
    refuse = "{ get() { throw new DOMException('no', 'SecurityError'); } }"
    for kind in ("sessionStorage", "localStorage"):
        screen.page.add_init_script(f"Object.defineProperty(window, '{kind}', {refuse})")

    screen.page.goto(f"{url}/#private")

    wait_for_text(screen.page, "#summary h2", "private")
    screen.page.locator("#theme").click()
    wait_for_text(screen.page, "#theme", "Theme: light")
