"""Put results into docs/benchmarks.md: `python -m benchmarks.docs RESULTS.json ...`.

A table stands between `<!-- suite: NAME -->` and `<!-- end -->`, with a line that says when and
where it was measured. Tables of suites that are not in the results stay as they are.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import Row
from benchmarks.programs import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- suite: {} -->", "<!-- end -->"


def filled(page: str, results: dict[str, Any]) -> str:
    """Return the page with the tables of some results.

    Raises:
        ValueError: The page has no place for a suite, or none that ends.
    """
    for name, suite in results["suites"].items():
        begin = BEGIN.format(name)
        table = report.markdown(Row(**row) for row in suite["rows"])
        when = f"Measured on {results['date'][:10]}: {results['machine']}."
        place = re.compile(f"{re.escape(begin)}.*?{re.escape(END)}", re.DOTALL)
        text = f"{begin}\n{when}\n\n{table}\n{END}"
        page, count = place.subn(lambda _, text=text: text, page)
        if count != 1:
            raise ValueError(f"the page has one place for {name!r}. Received: {count}")
    return page


def main(files: Iterable[str]) -> None:
    page = PAGE.read_text()
    for file in files:
        page = filled(page, json.loads(Path(file).read_text()))
    PAGE.write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])
