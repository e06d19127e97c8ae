"""The programs in examples/ run as they stand, against a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.requirements import require, require_program
from tests.servers import served

ROOT = Path(__file__).parents[2]
LINES = ("smallest.py", "smallest_async.py")
DIGITS = ("diloco.py", "federated.py")
ACCURACY = 0.95


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for all programs of this module."""
    with served(tmp_path_factory.mktemp("data")) as server:
        yield server.url


def run(url: str, *command: str) -> str:
    """Run a program against the server and return what it printed."""
    finished = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"STEPWELL_URL": url},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_every_python_example_is_run() -> None:
    """None is left out below."""
    found = {path.name for path in (ROOT / "examples").glob("*.py")}

    assert found == {*LINES, *DIGITS}


@pytest.mark.parametrize("name", LINES)
def test_a_small_example_finds_the_line(url: str, name: str) -> None:
    """Each trains to the known answer."""
    printed = run(url, sys.executable, str(ROOT / "examples" / name))

    assert printed.startswith("y = 3.00 x -2.00")


@pytest.mark.parametrize("name", DIGITS)
def test_an_example_with_local_steps_learns_the_digits(url: str, name: str) -> None:
    """On real images that it never saw; each round is one step of the server."""
    pytest.importorskip("sklearn", reason="the digits ship with scikit-learn")

    printed = run(url, sys.executable, str(ROOT / "examples" / name))

    found = re.fullmatch(r"accuracy (0\.\d{3}) after (\d+) rounds of \d+ local steps\n", printed)
    assert found, printed
    assert float(found[1]) >= ACCURACY
    model = httpx.get(f"{url}/v1/models/{Path(name).stem}").json()
    assert model["version"] == int(found[2])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_example_pushes_once_and_is_told_of_the_repetition(url: str) -> None:
    """The same push twice: one effect, and the second answer says `duplicate`; run it twice."""
    for expected in ("[[0.0, 1.0], [2.0, 3.0]]", "[[-1.0, 0.0], [1.0, 2.0]]"):
        printed = run(url, "sh", str(ROOT / "examples" / "curl.sh"))

        first, second, parameters = printed.splitlines()[-3:]
        assert '"duplicate": false' in first
        assert '"duplicate": true' in second
        assert expected in parameters


def require_r() -> str:
    """Need R with the two packages that the example uses."""
    rscript = require_program("Rscript", "r-base-core")
    for package in ("httr2", "jsonlite"):
        command = [rscript, "-e", f"library({package})"]
        missing = subprocess.run(command, capture_output=True, check=False).returncode
        hint = f"R has no package {package} (Debian: apt-get install r-cran-{package})"
        require("Rscript", hint if missing else "")
    return rscript


@pytest.mark.full
def test_the_r_example_finds_the_line(url: str) -> None:
    """With a configuration as keras3 writes it, and packages of Debian; run it twice."""
    rscript = require_r()

    for version in (200, 400):
        printed = run(url, rscript, str(ROOT / "examples" / "r" / "line.R"))

        assert printed == f"y = 3.00 x -2.00 at version {version}\n"


R_PROGRAM = """
source(file.path("{folder}", "stepwell.R"))
url <- Sys.getenv("STEPWELL_URL")
cube <- array(as.numeric(1:24) / 3, c(2, 3, 4))
sgd <- list(class_name = "SGD", config = list(learning_rate = 1))
create_model(url, "cube", list(cube = cube, one = 5), sgd)
worker <- open_worker(url, "cube", "r0")
first <- push(worker, list(cube = cube / 2, one = 1))
again <- push(worker, list(cube = cube / 2, one = 1))
left <- pull(url, "cube")
stopifnot(identical(dim(left$cube), c(2L, 3L, 4L)), max(abs(left$cube - cube / 2)) < 1e-6)
stopifnot(left$one == 4, again$result$duplicate, attr(left, "version") == 1)
cat(tryCatch(push(first, list(cube = 1)), error = function(e) {{
  conditionMessage(e)
}}))
"""


@pytest.mark.full
def test_an_r_program_sends_arrays_whole_and_is_told_what_is_wrong(url: str) -> None:
    """Three dimensions keep their order, a repeated push counts once, an error has our sentence."""
    program = R_PROGRAM.format(folder=ROOT / "examples" / "r")

    printed = run(url, require_r(), "-e", program)

    assert "cube" in printed
    assert "shape" in printed
