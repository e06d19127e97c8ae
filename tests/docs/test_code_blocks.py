"""Every code block of README.md and docs/ runs as it stands there, or says in front why not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import (
    ROOT,
    Block,
    blocks,
    fences,
    missing,
    pages,
    printed,
    program,
    session,
)
from tests.requirements import require_package, require_program
from tests.servers import free_port, served

PACKAGES = {
    "docs/jax.md": ("jax", "optax"),
    "docs/keras.md": ("keras", "jax"),
    "docs/torch.md": ("torch",),
}
"""What a page needs that `make setup` does not install, or that takes seconds to import."""

LONG = ("docs/how-to/checkpoints.md", "docs/how-to/tokens-and-tls.md")
"""Pages with a dozen commands, which take a second each; `make test-full` runs them."""

PROGRAMS = {"docs/how-to/tokens-and-tls.md": ("openssl",)}
"""Of the system, and also the Debian packages that they are in."""

LONGEST_S = 90


def name_of(page: Path) -> str:
    """Return the path that a person knows a page by."""
    return page.relative_to(ROOT).as_posix()


def pages_with(code: Callable[[list[Block]], str]) -> list[Any]:
    """Return the pages with a program, or with a session; what takes long is marked."""
    chosen = []
    for page in pages():
        name = name_of(page)
        if code(list(blocks(page.read_text()))):
            marks = [pytest.mark.full] if name in (*PACKAGES, *LONG) else []
            chosen.append(pytest.param(name, id=name, marks=marks))
    return chosen


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for all pages that do not start their own."""
    with served(tmp_path_factory.mktemp("data")) as server:
        yield server.url


def environment(**ours: str) -> Mapping[str, str]:
    """Return what a reader's terminal would have, with the commands that were installed."""
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("STEPWELL_") or name == "STEPWELL_CACHE_DIR"
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return others | {"PATH": path, "KERAS_BACKEND": "jax", "PYTHONUNBUFFERED": "1"} | ours


def run(command: list[str], folder: Path, **ours: str) -> str:
    """Run to the end, then end what it left running; return what it printed."""
    output = folder / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(**ours),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(LONGEST_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert code == 0, output.read_text()
    return output.read_text()


def found_in(name: str) -> list[Block]:
    """Return the blocks of a page, once what it needs is known to be there."""
    for package in PACKAGES.get(name, ()):
        require_package(package)
    for needed in PROGRAMS.get(name, ()):
        require_program(needed, needed)
    return list(blocks((ROOT / name).read_text()))


@pytest.mark.parametrize("name", pages_with(program))
def test_the_python_of_a_page_runs(url: str, tmp_path: Path, name: str) -> None:
    """What a reader pastes works; only the address is another. It prints what the page says."""
    # Arrange
    found = found_in(name)
    (tmp_path / "page.py").write_text(program(found).replace("http://127.0.0.1:8700", url))

    # Act
    output = run([sys.executable, "page.py"], tmp_path, STEPWELL_URL=url)

    # Assert
    assert missing(printed(found), output) is None, output


@pytest.mark.parametrize("name", pages_with(session))
def test_what_a_reader_types_into_a_shell_works(url: str, tmp_path: Path, name: str) -> None:
    """All of a page in one shell, in an empty folder with the files that the page has."""
    # Arrange
    found = found_in(name)
    port = url.rpartition(":")[2]
    if "stepwell serve" in session(found):
        port = str(free_port())
    script = session(found).replace(":8700", f":{port}")
    for block in found:
        if block.title:
            (tmp_path / block.title).write_text(block.code.replace(":8700", f":{port}"))

    # Act
    address = f"http://127.0.0.1:{port}"
    output = run(["bash", "-eu", "-c", script], tmp_path, STEPWELL_URL=address, STEPWELL_PORT=port)

    # Assert
    output = output.replace(f":{port}", ":8700")
    assert missing(printed(found), output) is None, output


@pytest.mark.parametrize(
    "name", [pytest.param(name_of(page), id=name_of(page)) for page in pages()]
)
def test_every_block_is_run_or_says_why_not(name: str) -> None:
    """None is skipped without a word, and none is overlooked."""
    text = (ROOT / name).read_text()
    found = list(blocks(text))

    silent = [block.line for block in found if not (block.is_run or block.excuse)]

    assert not silent, f"{name}: `<!-- not run: why -->` is missing before lines {silent}"
    assert fences(text) == 2 * len(found), f"{name} has a block that this test does not see"
    runs = [code for code in (program(found), session(found)) if code]
    assert not printed(found) or len(runs) == 1, f"{name}: it is not clear what prints that"


PAGE = """
<!-- not run: it takes a year -->
```sh
sleep 31536000
```

```python
print("one", 1)
```

<!-- printed -->
```text
one ...
```

    ```yaml
    a: 1
    ```
"""


def test_a_block_without_an_excuse_is_seen() -> None:
    """A page is read as its reader does."""
    excused, code, told, silent = blocks(PAGE)

    assert excused.excuse == "it takes a year"
    assert not excused.is_run
    assert program([excused, code, told]) == 'print("one", 1)\n'
    assert session([excused, code, told]) == ""
    assert printed([excused, code, told]) == ["one ..."]
    assert (silent.is_run, silent.excuse, silent.line) == (False, "", 16)


@pytest.mark.parametrize(
    ("output", "expected"),
    [("one 1\nother\ntwo\n", None), ("one 1\n", "two"), ("two\none 1\n", "two"), ("", "one ...")],
)
def test_lines_that_are_not_printed_are_missed(output: str, expected: str | None) -> None:
    """Their order counts; what stands between them does not."""
    assert missing(["one ...", "two"], output) == expected
