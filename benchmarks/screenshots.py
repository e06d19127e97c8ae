"""Pictures of the dashboard for docs/: `python -m benchmarks.screenshots docs/images`.

A server, the demo's workers that train digits on it, two checkpoints and a change by hand, and
Debian's Chromium: a desk in light colors, a telephone in dark ones.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import stepwell

from benchmarks.server import serving
from tests.browser import chromium, watched

SCREENS = {
    "dashboard": {"viewport": {"width": 1280, "height": 1500}, "color_scheme": "light"},
    "dashboard-phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "color_scheme": "dark",
        "is_mobile": True,
    },
}


def main() -> None:
    """Train, and look at it while workers are there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    with serving() as server, tempfile.TemporaryDirectory() as run, chromium() as browser:
        command = [sys.executable, "-m", "stepwell_server", "demo", "--url", server.url]
        with (
            subprocess.Popen([*command, "--folder", run, "--steps", "6000"]) as demo,
            stopping(demo),
        ):
            _change(server.url)
            for name, options in SCREENS.items():
                with watched(browser, server.url, **options) as screen:
                    screen.page.goto(f"{server.url}/#digits")
                    screen.page.locator("#curves .main-svg").first.wait_for()
                    screen.page.wait_for_timeout(4_000)  # some seconds of pushes
                    screen.page.screenshot(path=folder / f"{name}.png")
                    screen.check()


@contextlib.contextmanager
def stopping(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop a process in the end, whatever happens."""
    try:
        yield
    finally:
        process.terminate()


def _change(url: str) -> None:
    """Save, change a hyperparameter and save again while workers push."""
    with stepwell.Client(url) as client:
        while "digits" not in client.models():
            time.sleep(0.1)
        model = client.model("digits")
        for version, momentum in ((400, 0.95), (900, 0.8)):
            model.pull(min_version=version, wait_s=60)
            model.checkpoint()
            model.set_hyperparameters(beta_1=momentum)


if __name__ == "__main__":
    main()
