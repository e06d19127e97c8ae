"""The fenced code blocks of the documents, and what becomes of each.

    ```python               with all others of its page one program, which runs
    ```python title="x.py"  a file, which the page's shell blocks find in their folder
    ```sh                   with all others of its page one session of a shell, which runs
    ```text                 behind `<!-- printed -->`: what the page's program or session prints

Before any other block stands `<!-- not run: why -->`. In what is printed, `...` is anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<note>[^\n]*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_EXCUSE = re.compile(r"not run: (.+)")
_TITLE = re.compile(r'title="([\w.]+)"')

RUN = ("python", "sh")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: Behind the fence; may be empty.
        code: What is in it.
        title: The name of the file that it is; empty if it is none.
        excuse: Why it is not run; empty if it is.
        is_printed: Whether it is what the page prints.
        line: Of the fence, counted from 1.
    """

    language: str
    code: str
    title: str = ""
    excuse: str = ""
    is_printed: bool = False
    line: int = 0

    @property
    def is_run(self) -> bool:
        """Whether something is done with it, or compared with it."""
        return not self.excuse and (self.language in RUN or self.is_printed)


def pages() -> list[Path]:
    """Return all documents whose blocks are looked at."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a page in their order."""
    for found in _BLOCK.finditer(text):
        note = found["note"] or ""
        excuse, title = _EXCUSE.fullmatch(note), _TITLE.search(found["options"])
        yield Block(
            language=found["language"],
            code=found["code"],
            title=title[1] if title else "",
            excuse=excuse[1] if excuse else "",
            is_printed=note == "printed",
            line=text.count("\n", 0, found.start("indent")) + 1,
        )


def fences(text: str) -> int:
    """Return how many lines begin or end a block."""
    return len(re.findall(r"^ *```", text, re.MULTILINE))


def program(found: Iterable[Block]) -> str:
    """Return the Python of a page; empty if it has none that is run."""
    return "\n\n".join(b.code for b in found if b.is_run and b.language == "python" and not b.title)


def session(found: Iterable[Block]) -> str:
    """Return what a reader of the page types into a shell; empty if there is nothing."""
    return "".join(b.code for b in found if b.is_run and b.language == "sh")


def printed(found: Iterable[Block]) -> list[str]:
    """Return the lines that a page says are printed."""
    return [line for b in found if b.is_printed for line in b.code.splitlines()]


def missing(expected: Iterable[str], output: str) -> str | None:
    """Return the first expected line that does not come behind those before it; None if all do."""
    lines = iter(output.splitlines())
    for line in expected:
        pattern = ".*".join(map(re.escape, line.split("...")))
        if not any(re.fullmatch(pattern, other.rstrip()) for other in lines):
            return line
    return None
