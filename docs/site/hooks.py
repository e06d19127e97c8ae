"""What mkdocs is told beside its configuration: links out of docs/, and no request to other hosts.

Both work on plain text and import nothing of mkdocs, so that tests run where it is not installed.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)[^)]*\)")
"""A link of Markdown, not an image: its text, and its target without an anchor."""

TAG = re.compile(
    r"<(link|script|img|iframe|source|video|audio|object|embed)\b[^>]*>", re.IGNORECASE
)
ADDRESS = re.compile(r"""(?:src|srcset|href|data)\s*=\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)
IMPORTED = re.compile(r"""(?:url\(|@import)\s*["']?\s*(?:https?:)?//""", re.IGNORECASE)


class AsksOtherHosts(Exception):
    """A page of the site would make a reader's browser ask another host."""


def without_links_outside(text: str, folder: str) -> str:
    """Return a page whose links to files outside of docs/ are their text alone.

    In the repository such a link leads to the source; in the site there is no such file.

    Args:
        text: Markdown.
        folder: Of the page, relative to docs/.
    """

    def shown(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[1] if "://" not in link[2] and target.startswith("../") else link[0]

    return LINK.sub(shown, text)


def asked_hosts(text: str, suffix: str) -> list[str]:
    """Return what in a built file loads something from another host: tags, or rules of CSS.

    Args:
        text: Of the file.
        suffix: ".html" or ".css".
    """
    if suffix == ".css":
        return [text[found.start() : found.start() + 80] for found in IMPORTED.finditer(text)]
    return [tag[0] for tag in TAG.finditer(text) if ADDRESS.search(tag[0])]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Before a page is rendered."""
    return without_links_outside(markdown, posixpath.dirname(page.file.src_uri))


def on_post_build(config: Any, **_: Any) -> None:
    """After all is written.

    Raises:
        AsksOtherHosts: Something would be loaded from elsewhere.
    """
    site = Path(config["site_dir"])
    found = [
        f"{path.relative_to(site)}: {asked}"
        for path in sorted(site.rglob("*"))
        if path.suffix in (".html", ".css")
        for asked in asked_hosts(path.read_text("utf-8"), path.suffix)
    ]
    if found:
        raise AsksOtherHosts("The site would ask other hosts:\n" + "\n".join(found))
