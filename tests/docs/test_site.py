"""The documents hang together: links lead somewhere, and the site has every page."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import stepwell
import yaml

from tests.docs.blocks import ROOT

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)")
FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the names by which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize(
    "document", [pytest.param(d, id=str(d.relative_to(ROOT))) for d in DOCUMENTS]
)
def test_links_in_a_document_lead_somewhere(document: Path) -> None:
    """A relative link names a file that exists, and an anchor a heading of it."""
    broken = []
    for target in LINK.findall(FENCE.sub("", document.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        is_known = path.exists() and (not anchor or anchor in anchors(path.read_text()))
        broken += [] if is_known else [target]
    assert not broken


def entries(nav: Any) -> list[str]:
    """Return the pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    children = nav if isinstance(nav, list) else nav.values()
    return [page for child in children for page in entries(child)]


def test_every_page_is_in_the_navigation_once() -> None:
    """Nobody finds a page that is not; and each that is there exists."""
    configuration = yaml.safe_load((ROOT / "docs" / "site" / "mkdocs.yml").read_text())

    listed = entries(configuration["nav"])

    folder = ROOT / "docs"
    assert sorted(listed) == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.md")
    )


def test_every_public_name_is_in_the_reference() -> None:
    """What `import stepwell` gives; each as a directive of mkdocstrings."""
    page = (ROOT / "docs" / "reference" / "python.md").read_text()

    listed = set(re.findall(r"^::: stepwell\.(\w+)", page, re.MULTILINE))

    among_errors = {"StepwellError"}
    assert "\n::: stepwell_core.errors\n" in page
    assert set(stepwell.__all__) - {"__version__"} - among_errors <= listed


@pytest.mark.parametrize(
    "document", [pytest.param(d, id=str(d.relative_to(ROOT))) for d in DOCUMENTS]
)
def test_files_of_python_that_a_document_names_are_there(document: Path) -> None:
    """In the sources, or among those that the page itself has."""
    text = document.read_text()
    roots = ("benchmarks", "client", "core", "docs", "examples", "server", "tests")
    known = {f"/{path.relative_to(ROOT)}" for root in roots for path in (ROOT / root).rglob("*.py")}
    known |= {f"/{title}" for title in re.findall(r'title="([\w.]+)"', text)}

    named = set(re.findall(r"`([\w./]+\.py)`", text))

    gone = document.name == "CHANGELOG.md"  # which says what there was
    assert gone or not [
        name
        for name in named
        if not any(path.endswith(f"/{name.removeprefix('../')}") for path in known)
    ]


def test_a_word_is_in_the_glossary_once_and_where_it_is_looked_for() -> None:
    """By the alphabet."""
    page = (ROOT / "docs" / "glossary.md").read_text()

    words = re.findall(r"^\| \*\*(.+?)\*\* \|", page, re.MULTILINE)

    assert words == sorted(set(words))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """What mkdocs calls, without mkdocs."""
    path = ROOT / "docs" / "site" / "hooks.py"
    specification = importlib.util.spec_from_file_location("hooks", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_links_out_of_the_documents_are_their_text_in_the_site(hooks: ModuleType) -> None:
    """Those among the documents stay, whatever folder they are in."""
    text = "[a](../x.py), [b](y.md), [c](../y.md#z), [d](https://x.org), ![e](../e.png)"

    assert hooks.without_links_outside(text, "") == (
        "a, [b](y.md), c, [d](https://x.org), ![e](../e.png)"
    )
    assert hooks.without_links_outside(text, "how-to") == text.replace(
        "[a](../x.py)", "[a](../x.py)"
    )


@pytest.mark.parametrize(
    ("text", "suffix", "count"),
    [
        ('<link rel="stylesheet" href="https://fonts.googleapis.com/css">', ".html", 1),
        ("<script src=//cdn.example/x.js></script>", ".html", 1),
        ('<img alt="x" src="http://example/x.png">', ".html", 1),
        ('<a href="https://example">read on</a><img src="x.png">', ".html", 0),
        ("@import 'https://example/x.css'; a { background: url(//example/x.png) }", ".css", 2),
        ("a { background: url(x.png) }", ".css", 0),
    ],
)
def test_a_request_to_another_host_ends_the_build(
    hooks: ModuleType, tmp_path: Path, text: str, suffix: str, count: int
) -> None:
    """Fonts, scripts and images are the site's own; a link that a reader may follow is none."""
    (tmp_path / f"x{suffix}").write_text(text)

    assert len(hooks.asked_hosts(text, suffix)) == count
    if count:
        with pytest.raises(hooks.AsksOtherHosts):
            hooks.on_post_build({"site_dir": str(tmp_path)})
    else:
        hooks.on_post_build({"site_dir": str(tmp_path)})
